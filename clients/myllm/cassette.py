"""Cassettes: real exchanges with servers, recorded once and replayed in tests without a server.

with myllm.Cassette("tests/data/hello.json"):
    answer = client.chat("Hello!")
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from . import tap
from .errors import CassetteMiss, InvalidParameterError, MyLLMError
from .stream import AsyncStoredBody, StoredBody
from .tape import MASK, Exchange, Secrets, differences, load, save
from .transport.options import HTTPOptions
from .wire import Reply, Send

Mode = Literal["auto", "replay", "record", "append"]
MODES: tuple[Mode, ...] = ("auto", "replay", "record", "append")
P = ParamSpec("P")
T = TypeVar("T")

_SHOWN = 5
"""Differences that an error tells of."""
_log = logging.getLogger("myllm")


class Cassette:
    """A file of recorded exchanges, in place of the servers: a context manager, or a decorator of functions.

    While it is open, every client of this process is recorded or answered from it: sync, async, in any
    thread, and inside an adapter. Of several open ones the last one counts.

    A request is known by its method, path and JSON body, whatever server it goes to and under which key and
    id. Requests that are the same get their replies in the recorded order, and then the last one again.

    Refusals (status 400 and above) are recorded like answers. Connections that fail or break are not. A
    stream that its reader closes early is recorded as far as it came.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Mode = "auto",
        *,
        ignore: Iterable[str] = (),
        normalize: Callable[[Any], Any] | None = None,
        secrets: Iterable[str] = (),
        pace: float = 0.0,
    ) -> None:
        """Name a cassette; nothing is read before it is opened.

        Args:
            path: its JSON file, which belongs into version control. It is written when the block ends without
                an exception, whole or not at all.
            mode: "auto" replays if the file exists, and records it if not; "replay" never touches the
                network; "record" records anew; "append" replays what is there and records the rest. The
                variable MYLLM_CASSETTE_MODE overrides it.
            ignore: fields of the body's top level that may differ from what was recorded.
            normalize: returns what of a JSON body counts for the comparison, if not all of it does.
            secrets: more texts that the file must not hold. API keys, passwords, and whatever stands in
                headers like `Authorization` and `X-Api-Key` never come into it, nor any other header of a
                request.
            pace: seconds to wait before each piece of a replayed stream.

        Raises:
            InvalidParameterError: there is no such mode, or a negative `pace`.
        """
        self.path = Path(path)
        self.mode = _checked_mode(mode, "mode")
        self.ignore = frozenset([ignore] if isinstance(ignore, str) else ignore)
        self.normalize = normalize
        self.secrets = tuple([secrets] if isinstance(secrets, str) else secrets)
        if isinstance(pace, bool) or not isinstance(pace, int | float) or not pace >= 0:
            raise InvalidParameterError(f"`pace={pace!r}` must be a number of seconds.", param="pace")
        self.pace = pace
        self._sessions: list[_Session] = []

    def __repr__(self) -> str:
        return f"Cassette({str(self.path)!r}, mode={self.mode!r})"

    def __enter__(self) -> Cassette:
        session = _Session(self)
        tap.insert(session)
        self._sessions.append(session)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        session = self._sessions.pop()
        tap.remove(session)
        session.end(failed=kind is not None)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return `function` running inside the cassette, opened anew at each call; it may be `async`."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise InvalidParameterError(
                f"`{function.__name__}` is a generator, which runs on after its call has returned: open the "
                "cassette inside it with `with`.",
                param="function",
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def inside_async(*args: P.args, **kwargs: P.kwargs) -> Any:
                with self:
                    return await function(*args, **kwargs)

            return inside_async  # type: ignore[return-value]

        @functools.wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return inside


class _Session:
    """A cassette while it is open. Thread-safe; a `myllm.tap.Tap`."""

    def __init__(self, cassette: Cassette) -> None:
        self._cassette = cassette
        self._secrets = Secrets(cassette.secrets)
        self._lock = threading.Lock()
        self._new: list[Exchange] = []
        given = os.environ.get("MYLLM_CASSETTE_MODE")
        mode = _checked_mode(given, "MYLLM_CASSETTE_MODE") if given else cassette.mode
        exists = self._exists = cassette.path.exists()
        self.mode: Mode = mode if mode != "auto" else "replay" if exists else "record"
        self._old = load(cassette.path) if exists and self.mode != "record" else []
        self._keys = [self._key(exchange) for exchange in self._old]

    def send(self, action: Send, options: HTTPOptions, proceed: Callable[[], Reply]) -> Reply:
        """Replay or record."""
        exchange = self._begin(action, options)
        if exchange.status:
            body = _ReplayedBody(exchange, self._cassette)
            return _replayed(exchange, action, self._cassette, body)
        reply = proceed()
        exchange.answered(reply.status, reply.headers)
        if reply.stream is None:
            exchange.pieces, exchange.complete = [reply.body], True
        else:
            reply.stream = _RecordedBody(reply.stream, exchange)
        return reply

    async def send_async(
        self, action: Send, options: HTTPOptions, proceed: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        """See `send`."""
        exchange = self._begin(action, options)
        if exchange.status:
            await asyncio.sleep(0)  # as a network would, let others run
            body = _AsyncReplayedBody(exchange, self._cassette)
            return _replayed(exchange, action, self._cassette, body)
        reply = await proceed()
        exchange.answered(reply.status, reply.headers)
        if reply.stream is None:
            exchange.pieces, exchange.complete = [reply.body], True
        else:
            reply.stream = _AsyncRecordedBody(reply.stream, exchange)
        return reply

    def end(self, *, failed: bool) -> None:
        """Write the file, if there is anything to write."""
        new = [exchange for exchange in self._new if exchange.status]
        if self.mode == "replay" or not (new or self.mode == "record"):
            return
        path = self._cassette.path
        if failed:
            _log.warning("%s: not written, because its block ended with an exception", path)
        elif new or path.exists():
            save(path, [*self._old, *new], self._secrets)
            _log.info("%s: %d exchanges recorded", path, len(new))

    def _begin(self, action: Send, options: HTTPOptions) -> Exchange:
        """Return the recorded exchange for a request, or else a new one that is still without reply.

        Raises:
            CassetteMiss: there is none, and none may be recorded.
        """
        asked = Exchange.asked(action)
        key = self._key(asked)
        with self._lock:
            self._secrets.learn(action, options)
            known = [one for one, its in zip(self._old, self._keys, strict=True) if _same(one, its, key)]
            if known:
                found = next((one for one in known if not one.plays), known[-1])
                found.plays += 1
                return found
            if self.mode == "replay" and not self._exists:
                # Said here and not at the beginning: what asks nothing needs no cassette.
                raise CassetteMiss(
                    f"There is no cassette {str(self._cassette.path)!r} to replay.",
                    hint='Record it once, with the server running: mode="auto", or '
                    "MYLLM_CASSETTE_MODE=record.",
                )
            if self.mode == "replay":
                raise self._miss(asked, action)
            self._new.append(asked)
            return asked

    def _compared(self, exchange: Exchange) -> dict[str, Any]:
        """Return what two requests must have in common to be the same."""
        content = exchange.content
        if "json" in content:
            body = content["json"]
            if isinstance(body, dict) and self._cassette.ignore:
                body = {name: value for name, value in body.items() if name not in self._cassette.ignore}
            if self._cassette.normalize is not None:
                body = self._cassette.normalize(json.loads(json.dumps(body)))
            content = {"body": body}
        return {"method": exchange.method, "path": exchange.path, **content}

    def _key(self, exchange: Exchange) -> str:
        return json.dumps(self._compared(exchange), ensure_ascii=False, sort_keys=True)

    def _miss(self, asked: Exchange, action: Send) -> CassetteMiss:
        message = f"{str(self._cassette.path)!r} has no answer to {asked.method} {asked.path}"
        if self._old:
            sent = self._compared(asked)
            ways = [list(differences(self._compared(one), sent)) for one in self._old]

            def distance(index: int) -> tuple[bool, int]:
                return self._old[index].path != asked.path, len(ways[index])

            nearest = min(range(len(ways)), key=distance)
            shown = "; ".join(ways[nearest][:_SHOWN])
            more = len(ways[nearest]) - _SHOWN
            shown += f"; and {more} more" if more > 0 else ""
            message += f". Nearest is exchange {nearest + 1} of {len(ways)}: {shown}."
        else:
            message += ": it is empty."
        return CassetteMiss(
            self._secrets.strip_text(message),
            request_id=action.request_id,
            hint='If the request is right, record it with mode="append" (or MYLLM_CASSETTE_MODE=append), or '
            'all anew with "record"; `ignore=` and `normalize=` say what may differ.',
        )


class _Recorded:
    """A body on its way through the recorder; see `transport.http.OpenBody`."""

    def __init__(self, body: Any, exchange: Exchange) -> None:
        self._body = body
        self._exchange = exchange
        self._left = False

    def _broken(self) -> None:
        """Forget an exchange whose connection broke; not one whose reader broke it off."""
        if not self._left:
            self._exchange.status = 0

    def abort(self) -> None:
        """See `OpenBody.abort`."""
        self._left = True
        self._body.abort()

    def abandon(self) -> None:
        """See `OpenBody.abandon`."""
        self._left = True
        self._body.abandon()


class _RecordedBody(_Recorded):
    def __iter__(self) -> Iterator[bytes]:
        try:
            for data in self._body:
                self._exchange.pieces.append(data)
                yield data
            self._exchange.complete = True
        except MyLLMError:
            self._broken()
            raise

    def __enter__(self) -> _RecordedBody:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def finish(self) -> None:
        """See `OpenBody.finish`."""
        self._exchange.complete = True
        self._body.finish()

    def close(self) -> None:
        """See `OpenBody.close`."""
        self._body.close()


class _AsyncRecordedBody(_Recorded):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._body:
                self._exchange.pieces.append(data)
                yield data
            self._exchange.complete = True
        except MyLLMError:
            self._broken()
            raise

    async def __aenter__(self) -> _AsyncRecordedBody:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def finish(self) -> None:
        """See `OpenBody.finish`."""
        self._exchange.complete = True
        await self._body.finish()

    async def close(self) -> None:
        """See `OpenBody.close`."""
        await self._body.close()


class _ReplayedBody(StoredBody):
    """A recorded body, in the pieces that it came in."""

    def __init__(self, exchange: Exchange, cassette: Cassette) -> None:
        self._exchange = exchange
        self._cassette = cassette

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._exchange.pieces:
            time.sleep(self._cassette.pace)
            yield piece
        if not self._exchange.complete:
            raise _closed_early(self._cassette)


class _AsyncReplayedBody(AsyncStoredBody):
    def __init__(self, exchange: Exchange, cassette: Cassette) -> None:
        self._exchange = exchange
        self._cassette = cassette

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._exchange.pieces:
            await asyncio.sleep(self._cassette.pace)
            yield piece
        if not self._exchange.complete:
            raise _closed_early(self._cassette)


def _replayed(exchange: Exchange, action: Send, cassette: Cassette, body: Any) -> Reply:
    headers = dict(exchange.headers)
    if action.stream and exchange.status < 300:
        return Reply(status=exchange.status, headers=headers, stream=body, send=action)
    if not exchange.complete:
        raise _closed_early(cassette)
    return Reply(status=exchange.status, headers=headers, body=b"".join(exchange.pieces), send=action)


def _closed_early(cassette: Cassette) -> CassetteMiss:
    return CassetteMiss(
        f"{str(cassette.path)!r} holds no more of this reply: its reader left here when it was recorded.",
        hint='Record it anew with mode="record".',
    )


def _same(one: Exchange, recorded: str, sent: str) -> bool:
    """Whether two requests' keys are the same; what was taken out of the recorded one may be anything."""
    if not one.masked:
        return recorded == sent
    return re.fullmatch(".*".join(map(re.escape, recorded.split(MASK))), sent, re.DOTALL) is not None


def _checked_mode(mode: str, param: str) -> Mode:
    for known in MODES:
        if mode == known:
            return known
    raise InvalidParameterError(
        f"`{param}={mode!r}` is no mode: one of {', '.join(map(repr, MODES))}.", param=param
    )
