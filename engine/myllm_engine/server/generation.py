"""Run the engine requests of one HTTP request, and end them when the client goes away."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request as HttpRequest

from ..async_engine import AsyncEngine
from ..errors import InvalidRequestError
from ..request import (
    CompletionOutput,
    FinishReason,
    Request,
    RequestOutput,
    RequestTimings,
    TokenLogprob,
)
from .deadline import expired, in_time, remaining
from .errors import ClientDisconnectedError
from .limits import check_requests
from .settings import ServerContext

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Tokenizing takes about 1 us a character: more would hold up every stream of the event loop.
_OFFLOAD_CHARACTERS = 20_000

_SURROGATE = re.compile("[\ud800-\udfff]")


async def encode(
    context: ServerContext, texts: Sequence[str], http: HttpRequest, *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Return the token ids of each text, made in worker threads when there is much of it.

    Raises:
        InvalidRequestError: for a text with lone surrogates: JSON can write them, no tokenizer reads them.
        ClientDisconnectedError: the client left first.
    """
    if any(_SURROGATE.search(text) for text in texts):
        raise InvalidRequestError("The text holds half of a surrogate pair, which is no character")
    tokenizer = context.engine.tokenizer
    if sum(map(len, texts)) < _OFFLOAD_CHARACTERS:
        return [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    async def encode_each() -> list[list[int]]:
        # One by one, so that it ends soon when the client leaves.
        return [
            await context.readers.run(tokenizer.encode, text, add_special_tokens=add_special_tokens)
            for text in texts
        ]

    return await until_disconnect(http, encode_each())


@dataclass(slots=True)
class Completion:
    """Gather the outputs of one sequence."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, output: CompletionOutput) -> None:
        """Append what the sequence gained."""
        self.text += output.text
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs or ()
        self.finish_reason, self.stop_reason = output.finish_reason, output.stop_reason


class Generation:
    """Iterate over the outputs of one or more engine requests, as `(index of the request, output)`.

    Open it with `open`: errors that concern the whole request (an overfull queue, a dead engine) then come
    before an HTTP status is sent. Close it with `aclose` in every case: that aborts what still runs.

    Outputs are held back, and joined to the next ones, while the log-probabilities of the prompt are
    incomplete: what echoes a prompt begins with them. So are those with less than `interval` new tokens for
    every sequence, but for the first and the last one.

    Attributes:
        requests: those of the engine.
        settings: of the server.
        prompt_tokens: of all prompts.
        completion_tokens: of the outputs so far.
        prompt_logprobs: of each request's prompt, when asked for.
        embeddings: of each request with `pooling`.
        timings: of the first request whose output came.
    """

    def __init__(self, context: ServerContext, requests: Sequence[Request], *, interval: int = 1) -> None:
        self.requests = requests
        self.settings = context.settings
        self.prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self.completion_tokens = 0
        # Those of the completion's that the model thought with; None where nobody tells thoughts apart.
        self.reasoning_tokens: int | None = None
        self.prompt_logprobs: list[list[TokenLogprob | None] | None] = [None] * len(requests)
        self.embeddings: list[list[float] | None] = [None] * len(requests)
        self.timings: RequestTimings | None = None
        self._interval = interval
        self._cached: dict[int, int] = {}
        self._held: dict[int, RequestOutput] = {}
        self._outputs = _merge(context.engine, requests)
        self._first: asyncio.Future[tuple[int, RequestOutput]] | None = None
        self._started = time.monotonic()
        self._unfinished = len(requests)
        self._closed = False

    @classmethod
    async def open(
        cls,
        context: ServerContext,
        requests: Sequence[Request],
        http: HttpRequest,
        *,
        interval: int | None = None,
        stream: bool = False,
    ) -> Generation:
        """Submit the requests and wait for their first output.

        Args:
            context: of the server.
            requests: to be run.
            http: whose client must stay.
            interval: new tokens of a sequence that an output waits for.
            stream: whether a stream of events follows. Where that gets comments while nothing comes
                (`sse_keep_alive_interval`), it begins after such an interval, even without an output; what
                goes wrong then comes with the status sent.

        Raises:
            InvalidRequestError: before anything is submitted.
            ProblemError: see `limits`.
            QueueFullError, EngineDeadError: from the engine.
            ClientDisconnectedError: the client left first; nothing runs any more.
        """
        engine = context.engine
        check_requests(context, requests)
        for request in requests:
            # Compiles the constraint, which takes from 1 ms to seconds.
            await until_disconnect(http, engine.prepare(request))
        generation = cls(context, requests, interval=interval or 1)
        patience = context.settings.http.sse_keep_alive_interval if stream else 0
        try:
            await until_disconnect(http, generation._begin(patience or None))
        except BaseException:
            await generation.aclose()
            raise
        return generation

    async def _begin(self, patience: float | None) -> None:
        """Wait for the first output, or for so many seconds."""
        self._first = asyncio.ensure_future(anext(self._outputs))
        await asyncio.wait((self._first,), timeout=patience)
        if self._first.done():
            self._first.result()  # raises what went wrong

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> tuple[int, RequestOutput]:
        while True:
            coming, self._first = self._first or anext(self._outputs), None
            index, output = await in_time(coming)
            if held := self._held.pop(index, None):
                held.extend(output)
                output = held
            if self._is_due(index, output):
                break
            self._held[index] = output
        self.timings = self.timings or output.timings
        self._cached[index] = output.num_cached_tokens
        self.completion_tokens += sum(len(sequence.token_ids) for sequence in output.outputs)
        self._unfinished -= output.finished
        if output.prompt_logprobs is not None:
            self.prompt_logprobs[index] = output.prompt_logprobs
        if output.embedding is not None:
            self.embeddings[index] = output.embedding
        return index, output

    def _is_due(self, index: int, output: RequestOutput) -> bool:
        """Tell whether an output is handed out now."""
        if output.finished:
            return True
        if output.prompt_logprobs is not None and len(output.prompt_logprobs) < len(output.prompt_token_ids):
            return False
        is_first = index not in self._cached
        return is_first or any(
            sequence.finish_reason or len(sequence.token_ids) >= self._interval for sequence in output.outputs
        )

    @property
    def cached_tokens(self) -> int:
        """Return how many tokens of the prompts were found in the prefix cache, as far as is known."""
        return sum(self._cached.values())

    async def collect(self, http: HttpRequest) -> list[list[Completion]]:
        """Return the completions of each request when all have ended, and close."""
        completions = [[Completion() for _ in range(request.params.n)] for request in self.requests]

        async def gather() -> None:
            async for index, output in self:
                for sequence in output.outputs:
                    completions[index][sequence.index].add(sequence)

        try:
            await until_disconnect(http, gather())
        finally:
            await self.aclose()
        return completions

    async def aclose(self) -> None:
        """Abort what still runs."""
        if self._closed:
            return
        self._closed = True
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
        await self._outputs.aclose()
        logger.info(
            "request %s",
            "aborted" if self._unfinished else "finished",
            extra={
                "request_id": self.requests[0].request_id,
                "prompts": len(self.requests),
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "seconds": round(time.monotonic() - self._started, 3),
            },
        )


async def _merge(
    engine: AsyncEngine, requests: Sequence[Request]
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    if len(requests) == 1:
        async with aclosing(engine.submit(requests[0])) as outputs:
            async for output in outputs:
                yield 0, output
        return

    queue: asyncio.Queue[tuple[int, RequestOutput] | BaseException | None] = asyncio.Queue()

    async def pump(index: int, request: Request) -> None:
        try:
            async with aclosing(engine.submit(request)) as outputs:
                async for output in outputs:
                    queue.put_nowait((index, output))
        except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_disconnect(http: HttpRequest, work: Awaitable[T]) -> T:
    """Return the result of `work`; cancel it when the client leaves or the request's time is up.

    Raises:
        ClientDisconnectedError: the client left first.
        ProblemError: the time was up first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait((task, watcher), timeout=remaining(), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnectedError if watcher.done() else expired()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnect(http: HttpRequest) -> None:
    # The body has been read: what `receive` still brings is the disconnect.
    while (await http.receive())["type"] != "http.disconnect":
        pass
