"""A batch from file to file: what is left to do, doing it, and when to give up."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import IO, Any

from ..errors import APIStatusError, AuthenticationError, ConnectError, InvalidResponseError, MyLLMError
from ..types import Answer
from .files import BatchFileError, ErrorFile, LineFile, Sink
from .lines import InputLine, failure, read_line, success
from .progress import Report
from .request import AsyncCaller, read
from .run import windowed

_SYNC_EVERY = 2.0  # seconds; what a power cut may cost
_BUSY_STATUSES = frozenset({429, 503})
"""A server is there, and has no room now: it is waited for, for as long as it takes."""
_OUTAGE_STATUSES = frozenset({502, 504})
"""Something is there, but not the server."""
_PATIENCE = 60.0  # seconds
_OTHERS = 3
_LONGEST_PAUSE = 5.0  # seconds
_NOTICE_EVERY = 30.0  # seconds


class ServerUnreachable(MyLLMError):
    """No request gets through any more; those that were not answered are not counted as failed."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What an input file holds and an output file lacks.

    Attributes:
        requests: in the input.
        done: of them, by earlier runs.
        todo: offset and number of each line that is left, one after the other; what failed before is last.
    """

    requests: int = 0
    done: int = 0
    todo: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def left(self) -> int:
        """Number of requests still to make."""
        return len(self.todo) // 2


def make_plan(
    source: IO[bytes], name: str, model: str | None, out: Sink, errors: Sink, *, resume: bool
) -> Plan:
    """Compare the input with what is there, line by line; `resume=False` empties what is there.

    Raises:
        BatchFileError: a `custom_id` that occurs twice, no usable line at all, an output of other requests.
    """
    done = _answered(out) if isinstance(out, LineFile) and resume else {}
    plan = Plan()
    seen: dict[str, int] = {}
    failed_before: set[str] = set()
    again = array("Q")
    first_bad: InputLine | None = None
    usable = False
    for offset, number, raw in _raw_lines(source):
        line = read_line(raw, number, model)
        plan.requests += 1
        if line.error is not None:
            first_bad = first_bad or line
        if line.custom_id is not None:
            usable = True
            if (twin := seen.setdefault(line.custom_id, number)) != number:
                raise BatchFileError(
                    f"Lines {twin} and {number} of {name} have the same `custom_id` {line.custom_id!r}: "
                    "their answers could not be told apart."
                )
            if (id_ := done.pop(line.custom_id, None)) is not None:
                if id_ != line.id:
                    raise _changed(f"line {number} (`custom_id` {line.custom_id!r})", name, out)
                plan.done += 1
                continue
        if isinstance(errors, ErrorFile) and line.id in errors:
            failed_before.add(line.id)
            again.extend((offset, number))
        else:
            plan.todo.extend((offset, number))
    if done:
        raise _changed(f"the line with `custom_id` {next(iter(done))!r}", name, out)
    if first_bad is not None and not usable:
        raise BatchFileError(
            f"No line of {name} is a request: {first_bad.error}",
            hint='A line looks like {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", '
            '"body": {"messages": [{"role": "user", "content": "Hello"}]}}.',
        )
    # Last: it may fail slowly again, and new requests should not wait for it.
    plan.todo.extend(again)
    if isinstance(errors, ErrorFile):
        errors.begin(failed_before)
    if isinstance(out, LineFile) and not resume:
        out.clear()
    return plan


def _answered(out: LineFile) -> dict[str, str]:
    """Return the id of each line of an output file, by custom_id."""
    done: dict[str, str] = {}
    for _, _, line in out.read():
        if line["custom_id"] in done:
            raise BatchFileError(
                f"{out.path} answers `custom_id` {line['custom_id']!r} twice.",
                hint="Delete one of the two lines, or overwrite the file with --no-resume.",
            )
        done[line["custom_id"]] = line["id"]
    return done


def _changed(what: str, name: str, out: Sink) -> BatchFileError:
    assert isinstance(out, LineFile)  # only a file has earlier answers
    return BatchFileError(
        f"{out.path} has an answer to {what}, but {name} or `--model` was changed since.",
        hint="Write to another file, or begin anew with --no-resume.",
    )


def _raw_lines(source: IO[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield offset, number and bytes of each line that is not blank."""
    offset = 0
    source.seek(0)
    for number, raw in enumerate(source, 1):
        if raw.strip():
            yield offset, number, raw
        offset += len(raw)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one run has done so far."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(kw_only=True)
class Job:
    """One run over the lines of a plan.

    Attributes:
        wait: seconds to bear servers that cannot be reached; None is a minute once they have answered, if
            only that they are busy, and no time before.
        notice: told what a user should know at once.
    """

    client: AsyncCaller
    source: IO[bytes]
    plan: Plan
    model: str | None
    out: Sink
    errors: Sink
    concurrency: int
    ordered: bool
    wait: float | None
    notice: Callable[[str], None]
    report: Report
    tally: Tally = field(default_factory=Tally)
    stopping: bool = False
    _finished: dict[int, tuple[InputLine, Answer | Exception]] = field(default_factory=dict)
    _drawn: bool = False
    _turned_away: dict[int, float] = field(default_factory=dict)  # each line in flight: when last
    _found: bool = False
    _reached: int = 0
    _reached_at: float = 0.0
    _down_since: float | None = None
    _next_notice: float = 0.0

    async def run(self) -> None:
        """Do what is left; `stopping` makes it draw no further lines.

        Raises:
            ServerUnreachable: no server could be reached for too long.
            AuthenticationError: the servers refuse the key.
            OSError: the output cannot be written.
        """
        synced = time.monotonic()
        results = windowed(self._lines(), self._result, concurrency=self.concurrency, ordered=self.ordered)
        try:
            async with aclosing(results):
                async for number in results:
                    self._write(number)
                    if time.monotonic() - synced > _SYNC_EVERY:
                        await asyncio.to_thread(self._sync)
                        synced = time.monotonic()
        finally:
            # What the end of the run overtook was answered, and maybe paid for, all the same.
            for number in sorted(self._finished):
                self._write(number)

    def _sync(self) -> None:
        self.out.sync()
        self.errors.sync()

    def _lines(self) -> Iterator[InputLine]:
        for place in range(self.plan.left):
            if self.stopping:
                return
            offset, number = self.plan.todo[2 * place : 2 * place + 2]
            self.source.seek(offset)
            yield read_line(self.source.readline(), number, self.model)
        self._drawn = True

    async def _result(self, index: int, line: InputLine) -> int:
        """Put what becomes of a line, unless it is left, into `_finished`; return its number."""
        try:
            if line.error is not None:
                raise line.error
            request = read(line.content)
            answer = await self._patiently(line.number, lambda: request.send(self.client))
            if answer is not None:
                self._finished[line.number] = line, answer
        except ServerUnreachable:
            raise
        except Exception as exc:  # it is written down, and the other lines go on
            if isinstance(exc, AuthenticationError) and exc.status == 401:
                raise  # it would be the same for every line
            self._finished[line.number] = line, exc
        return line.number

    async def _patiently(self, number: int, send: Callable[[], Any]) -> Answer | None:
        """Make a call, again and again while it is the servers and not the request that fail.

        Returns None when the run is stopped before the call, or between two tries of it.
        """
        others = 0
        reached: int | None = None
        pause = 0.25
        self._turned_away[number] = -math.inf
        try:
            while not self.stopping:
                try:
                    answer: Answer = await send()
                except MyLLMError as exc:
                    if not (_is_busy(exc) or _is_outage(exc)):
                        if isinstance(exc, APIStatusError | InvalidResponseError):
                            self._note_reached()
                        raise
                    # Between two failures of this request others got through: it may be the one to blame.
                    others += reached is not None and self._reached > reached
                    reached = self._reached
                    self._turned_away[number] = time.monotonic()
                    if await (self._bear_busy if _is_busy(exc) else self._bear_outage)(exc, others):
                        raise
                else:
                    self._note_reached()
                    return answer
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            return None
        finally:
            del self._turned_away[number]

    async def _alive(self) -> bool:
        """Whether a server answers at all."""
        try:
            await self.client.models(timeout=_LONGEST_PAUSE)
        except MyLLMError:
            return False
        return True

    def _note_reached(self) -> None:
        self._reached += 1
        self._reached_at = time.monotonic()
        self._found = True
        self._down_since = None

    async def _bear_busy(self, exc: MyLLMError, others: int) -> bool:
        """Note that a server has no room for a line; whether that line will never get any.

        It is so when nothing but such lines is left, none of them gets through for long, and the servers are
        well: "too many tokens for your plan", for example.
        """
        now = time.monotonic()
        self._found = True
        self._down_since = None
        self._say_now_and_then(f"{exc} Trying again until there is room.")
        patience = _PATIENCE if self.wait is None else self.wait
        # A line that was not turned away of late has the room that this one wants.
        if not others or not self._drawn or self._hope(now - _PATIENCE) or now - self._reached_at < patience:
            return False
        return await self._alive()

    async def _bear_outage(self, exc: MyLLMError, others: int) -> bool:
        """Note that a server cannot be reached; whether it is the line that brings it down.

        Raises:
            ServerUnreachable: for all lines in flight, and for too long.
        """
        now = time.monotonic()
        patience = self.wait if self.wait is not None else _PATIENCE if self._found else 0.0
        if self._down_since is None:
            self._down_since = now
            if patience:
                self._say_now_and_then(f"{exc} Trying again for {patience:g} s.")
        if others >= _OTHERS:
            return True
        if self._hope() or now - self._down_since < patience:
            return False
        if others and await self._alive():
            return True
        raise ServerUnreachable(str(exc), endpoint=exc.endpoint) from exc

    def _hope(self, lately: float = 0.0) -> bool:
        """Whether a line in flight was not turned away since the last answer, or not `lately`."""
        return min(self._turned_away.values()) < max(self._reached_at, lately)

    def _say_now_and_then(self, words: str) -> None:
        now = time.monotonic()
        if now >= self._next_notice:
            self._next_notice = now + _NOTICE_EVERY
            self.notice(words)

    def _write(self, number: int) -> None:
        if number not in self._finished:
            return  # it is left
        line, result = self._finished.pop(number)
        if isinstance(result, Exception):
            self.errors.append(failure(line, result))
            self.tally.failed += 1
            if self.tally.failed <= 3:
                self.notice(f"Line {line.number} failed: {result}")
        else:
            self.out.append(success(line, result))
            if isinstance(self.errors, ErrorFile):
                self.errors.mended(line.id)
            self.tally.answered += 1
            if result.usage is not None:
                self.tally.prompt_tokens += result.usage.prompt_tokens
                self.tally.completion_tokens += result.usage.completion_tokens
        self.report(isinstance(result, Exception))


def _is_busy(exc: MyLLMError) -> bool:
    return isinstance(exc, APIStatusError) and exc.status in _BUSY_STATUSES


def _is_outage(exc: MyLLMError) -> bool:
    if isinstance(exc, APIStatusError):
        return exc.status in _OUTAGE_STATUSES
    return isinstance(exc, ConnectError) and not exc.connected
