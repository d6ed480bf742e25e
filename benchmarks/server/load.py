"""The load: so many streams at once, each of which asks again as soon as it is answered.

    python -m benchmarks.server.load

A process of its own, whose commands are the methods of `Load`. It costs as little as possible, for it runs
beside what it measures: while an answer comes in, bytes are kept and the time is noted, and that is all.
"""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import uvloop

from benchmarks._process import Figures, obey

_END = b"\r\n0\r\n\r\n"  # of a chunked body
_COUNT = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass
class Answer:
    """When one answer was asked for, and when its first and last tokens were there."""

    begun: float
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0


async def drive(
    lanes: Sequence[Callable[[Any], Awaitable[Answer]]], prompts: Sequence[Any], new_tokens: int
) -> Figures:
    """Give each lane prompts, one after the other, until there are none left; return what came out."""
    waiting: Iterator[Any] = iter(prompts)
    answers: list[Answer] = []

    async def work(lane: Callable[[Any], Awaitable[Answer]]) -> None:
        for prompt in waiting:
            answers.append(await lane(prompt))

    start = time.perf_counter()
    await asyncio.gather(*map(work, lanes))
    elapsed = time.perf_counter() - start
    if {answer.tokens for answer in answers} != {new_tokens}:
        raise ValueError(
            f"answers of {sorted({answer.tokens for answer in answers})} tokens, not {new_tokens}"
        )
    firsts = [(answer.first - answer.begun) * 1e3 for answer in answers]
    gaps = [(answer.last - answer.first) / (new_tokens - 1) * 1e3 for answer in answers]
    return {
        "requests_per_second": len(answers) / elapsed,
        "tokens_per_second": len(answers) * new_tokens / elapsed,
        "first_token_ms": statistics.median(firsts),
        "last_first_token_ms": max(firsts),
        "between_tokens_ms": statistics.median(gaps),
    }


class _Connection(asyncio.Protocol):
    """One connection that is kept, with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._received: list[bytes] = []
        self._answer = Answer(0.0)
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received.append(data)
        if b"data: {" in data:
            self._answer.last = time.perf_counter()
            if not self._answer.first:
                self._answer.first = self._answer.last
        ended = data.endswith(_END) or b"".join(self._received[-2:]).endswith(_END)
        # A refusal comes whole, and is no event stream.
        if (
            self._done
            and not self._done.done()
            and (ended or not self._received[0].startswith(b"HTTP/1.1 200"))
        ):
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done and not self._done.done():
            self._done.set_exception(ConnectionError("the server closed the connection"))

    async def ask(self, body: bytes) -> Answer:
        """Send a request and wait for the end of its answer."""
        self._received.clear()
        self._done = asyncio.get_running_loop().create_future()
        self._answer = Answer(time.perf_counter())
        self._transport.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await self._done
        received = b"".join(self._received)
        counts = _COUNT.findall(received)
        if not counts:
            raise ValueError(f"no answer with token counts: {received[:400].decode(errors='replace')!r}")
        self._answer.tokens = int(counts[-1])
        return self._answer

    def close(self) -> None:
        """End it."""
        self._transport.close()


class Load:
    """Makes load; each method is a command and returns figures."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner

    def drive(
        self, port: int, body: dict[str, Any], streams: int, prompts: list[str], new_tokens: int
    ) -> Figures:
        """Send the prompts to the server at `port`, `streams` at once; `body` is the rest of a request."""
        return self._runner.run(self._drive(port, body, streams, prompts, new_tokens))

    async def _drive(
        self, port: int, body: dict[str, Any], streams: int, prompts: list[str], new_tokens: int
    ) -> Figures:
        loop = asyncio.get_running_loop()
        connections = [
            (await loop.create_connection(_Connection, "127.0.0.1", port))[1] for _ in range(streams)
        ]
        bodies = [json.dumps({**body, "prompt": prompt}).encode() for prompt in prompts]
        try:
            return await drive([connection.ask for connection in connections], bodies, new_tokens)
        finally:
            for connection in connections:
                connection.close()


def main() -> None:
    """Obey until the standard input ends."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        obey(lambda: Load(runner))


if __name__ == "__main__":
    main()
