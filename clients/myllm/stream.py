"""Streams: chunks as they come, and the whole answer they add up to."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from typing import Any, Generic, TypeVar

from . import constraints
from .accumulate import Accumulator
from .cache import is_complete
from .dialects import DONE, ChunkReader
from .errors import ConnectError, IncompleteStreamError, InvalidResponseError, MyLLMError
from .ndjson import NDJSONDecoder
from .reading import located, located_error
from .sse import SSEDecoder
from .types import Answer, ChatChunk, ChatCompletion, Completion, CompletionChunk
from .wire import Call, ServerInfo

ChunkT = TypeVar("ChunkT", ChatChunk, CompletionChunk)
FinalT = TypeVar("FinalT", ChatCompletion, Completion)
Ended = Callable[[Answer | None, BaseException | None], None]


_NO_ANSWER = "The server may have refused the request after it had accepted it; its log tells."


class StreamParser:
    """The sans-IO half of a stream: body bytes in, chunks out, and the check that it came to its end.

    Args:
        call: what is being answered.
        reader: reads the events.
        endpoint, request_id: for errors.
        ended: called once, with the answer, with the error, or with neither when the stream was closed early.
        began: called at the first chunk.
        server: who answers, for errors.
        cached: the body is what the cache had.
        secrets: to be blotted out of errors.
        lines: the body is newline-delimited JSON instead of server-sent events.
    """

    def __init__(
        self,
        call: Call,
        reader: ChunkReader,
        endpoint: str,
        request_id: str,
        ended: Ended,
        began: Callable[[], None] | None = None,
        *,
        server: ServerInfo | None = None,
        lines: bool = False,
        cached: bool = False,
        secrets: Sequence[str] = (),
    ) -> None:
        self.call = call
        self.total = Accumulator(call.kind)
        self.done = False
        self.closed = False
        self.endpoint = endpoint
        self.request_id = request_id
        self._reader = reader
        self._server = server
        self._cached = cached
        self._secrets = secrets
        self._decoder: SSEDecoder | NDJSONDecoder = NDJSONDecoder() if lines else SSEDecoder()
        self._ended: Ended | None = ended
        self._began = began
        self._answer: Any = None

    def feed(self, body: bytes) -> Iterator[Any]:
        """Yield the chunks that `body` completes."""
        for data in self._decoder.feed(body):
            chunk = self._chunk(data)
            if chunk is not None:
                yield chunk
            if self.done:
                return

    def end(self, error: MyLLMError | None = None) -> Iterator[Any]:
        """Yield what the body's end completes, whether it ended by itself or with an error.

        Raises:
            IncompleteStreamError: the body ended before the answer did.
            MyLLMError: `error`, if it is not about the connection.
        """
        if self.done or self.closed:
            return
        if error is not None and not isinstance(error, ConnectError) and not self._reader.complete:
            error.partial = self.total.result()
            raise error
        try:
            for data in self._decoder.close():
                chunk = self._chunk(data)
                if chunk is not None:
                    yield chunk
        except InvalidResponseError as exc:  # an event that was cut in two
            error = error or exc
        if not self.done and not self._reader.complete:
            raise IncompleteStreamError(
                f"The stream from {self.endpoint} broke off before its end.",
                partial=self.total.result(),
                endpoint=self.endpoint,
                request_id=self.request_id,
                hint="The server may have been stopped or have crashed; `partial` holds what had come.",
            ) from error
        self.done = True

    def check(self) -> None:
        """Check the whole answer against its constraint, once everything has come.

        Raises:
            ConstraintNotEnforced: it breaks it.
        """
        with located(self.endpoint, self.request_id, self._secrets):
            if not self.answer().choices:
                raise InvalidResponseError("The stream ended without an answer.", hint=_NO_ANSWER)
            constraints.check(self.call, self.answer(), self._server)

    def answer(self) -> Any:
        """Return the answer that everything added up to."""
        if self._answer is None:
            self._answer = self.total.result()
            self._answer._endpoint, self._answer._request_id = self.endpoint, self.request_id
            self._answer._cached = self._cached
        return self._answer

    def final(self) -> Any:
        """Return the accumulated answer.

        Raises:
            IncompleteStreamError: the stream was closed before its end.
        """
        if not self.done:
            raise IncompleteStreamError(
                "The stream was closed before its end, so there is no whole answer.",
                partial=self.total.result(),
                endpoint=self.endpoint,
                request_id=self.request_id,
            )
        return self.answer()

    def over(self, error: BaseException | None = None) -> None:
        """Say that nothing more will be read; only the first time counts."""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self.answer() if self.done and error is None else None, error)

    def _chunk(self, data: bytes) -> Any:
        """Return the chunk in an event's data, or None."""
        try:
            chunk = self._reader.read(data)
            if chunk is DONE:
                self.done = True
                return None
            if chunk is None:
                return None
            self.total.add(chunk)  # type: ignore[arg-type]
        except (MyLLMError, KeyError, TypeError, ValueError, AttributeError) as exc:
            error = located_error(exc, self.endpoint, self.request_id, self._secrets)
            error.partial = self.total.result()
            raise error from (exc.__cause__ if error is exc else exc)
        if self._began is not None:
            self._began()
            self._began = None
        if self._reader.ended:
            self.done = True
        return chunk


class Stream(Generic[ChunkT, FinalT]):
    """A stream of chunks: a context manager and an iterator.

        with client.stream_chat(messages) as stream:
            for chunk in stream:
                print(chunk.text, end="")
        answer = stream.final()

    Leaving the context early closes the connection, and the server then stops generating.
    """

    def __init__(self, parser: StreamParser, body: Any, keep: Callable[[FinalT], None] | None = None) -> None:
        self._parser = parser
        self._body = body
        self._chunks = _read(parser, body, keep)
        # Whoever closes from another thread may do so in the middle of a read: a generator has one user.
        self._reading = threading.Lock()
        # A stream that nobody reads or closes must not hold its connection for ever.
        self._finalizer: weakref.finalize[..., Any] = weakref.finalize(self, _abandon, parser, body)

    @property
    def request_id(self) -> str:
        """The id under which the request was sent."""
        return self._parser.request_id

    def __iter__(self) -> Iterator[ChunkT]:
        return self

    def __next__(self) -> ChunkT:
        with self._reading:
            chunk: ChunkT = next(self._chunks)
        return chunk

    def final(self) -> FinalT:
        """Read what is left of the stream and return the whole answer.

        Raises:
            IncompleteStreamError: the stream was closed before its end.
        """
        for _ in self:
            pass
        answer: FinalT = self._parser.final()
        return answer

    def __enter__(self) -> Stream[ChunkT, FinalT]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; nothing more comes from the iterator. Also from another thread."""
        self._parser.closed = True
        self._finalizer.detach()
        self._body.abort()
        if not self._reading.acquire(blocking=False):
            return  # another thread is reading: it sees the connection end, and closes it
        try:
            self._chunks.close()
            self._body.close()  # for a stream that nobody began to read
        finally:
            self._reading.release()
        self._parser.over()


class AsyncStream(Generic[ChunkT, FinalT]):
    """`Stream` for `AsyncClient`.

    async with client.stream_chat(messages) as stream:
        async for chunk in stream:
            print(chunk.text, end="")
    answer = await stream.final()
    """

    def __init__(
        self, parser: StreamParser, body: Any, keep: Callable[[FinalT], Awaitable[None]] | None = None
    ) -> None:
        self._parser = parser
        self._body = body
        self._chunks = _read_async(parser, body, keep)
        self._reading = asyncio.Lock()
        self._finalizer: weakref.finalize[..., Any] = weakref.finalize(self, _abandon, parser, body)

    @property
    def request_id(self) -> str:
        """The id under which the request was sent."""
        return self._parser.request_id

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        return self

    async def __anext__(self) -> ChunkT:
        async with self._reading:
            chunk: ChunkT = await anext(self._chunks)
        return chunk

    async def final(self) -> FinalT:
        """See `Stream.final`."""
        async for _ in self:
            pass
        answer: FinalT = self._parser.final()
        return answer

    async def __aenter__(self) -> AsyncStream[ChunkT, FinalT]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Stream.close`; also from another task."""
        self._parser.closed = True
        self._finalizer.detach()
        self._body.abort()
        if self._reading.locked():
            return  # another task is reading: it sees the connection end, and closes it
        async with self._reading:
            await self._chunks.aclose()
            await self._body.close()
        self._parser.over()


class AsyncStreamOpening(Generic[ChunkT, FinalT]):
    """A stream that is still to be opened: `async with` it, or `await` it for the `AsyncStream`."""

    def __init__(self, opening: Coroutine[Any, Any, AsyncStream[ChunkT, FinalT]]) -> None:
        self._opening: Coroutine[Any, Any, AsyncStream[ChunkT, FinalT]] = opening
        self._stream: AsyncStream[ChunkT, FinalT] | None = None

    def __await__(self) -> Generator[Any, None, AsyncStream[ChunkT, FinalT]]:
        stream: AsyncStream[ChunkT, FinalT] = yield from self._opening.__await__()
        return stream

    async def __aenter__(self) -> AsyncStream[ChunkT, FinalT]:
        self._stream = await self._opening
        return self._stream

    async def __aexit__(self, *exc: object) -> None:
        if self._stream is not None:
            await self._stream.close()


def _abandon(parser: StreamParser, body: Any) -> None:
    body.abandon()
    parser.over()


def _read(parser: StreamParser, body: Any, keep: Callable[[Any], None] | None) -> Generator[Any, None, None]:
    """Yield the chunks of a body; what follows the answer's end is not waited for."""
    try:
        with body:
            error: MyLLMError | None = None
            try:
                for data in body:
                    yield from parser.feed(data)
                    if parser.done:
                        body.finish()
                        break
            except MyLLMError as exc:
                if exc.partial is not None:  # the parser's own
                    raise
                error = exc
            yield from parser.end(error)
        if parser.done:
            parser.check()
            if keep is not None and is_complete(parser.answer()):
                keep(parser.answer())
    except Exception as exc:
        parser.over(exc)
        raise
    finally:
        parser.over()


async def _read_async(
    parser: StreamParser, body: Any, keep: Callable[[Any], Awaitable[None]] | None
) -> AsyncGenerator[Any, None]:
    try:
        async with body:
            error: MyLLMError | None = None
            try:
                async for data in body:
                    for chunk in parser.feed(data):
                        yield chunk
                    if parser.done:
                        await body.finish()
                        break
            except MyLLMError as exc:
                if exc.partial is not None:
                    raise
                error = exc
            for chunk in parser.end(error):
                yield chunk
        if parser.done:
            parser.check()
            if keep is not None and is_complete(parser.answer()):
                await keep(parser.answer())
    except Exception as exc:
        parser.over(exc)
        raise
    finally:
        parser.over()


class StoredBody:
    """The body of a stream that the cache answers: its one event, in OpenAI's format."""

    def __init__(self, answer: ChatCompletion | Completion) -> None:
        self._data = _event(answer)

    def __iter__(self) -> Iterator[bytes]:
        yield self._data

    def __enter__(self) -> StoredBody:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is open."""

    def _nothing(self) -> None:
        """Nothing is open."""

    finish = close = abort = abandon = _nothing


class AsyncStoredBody:
    """`StoredBody` for `AsyncClient`."""

    def __init__(self, answer: ChatCompletion | Completion) -> None:
        self._data = _event(answer)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data

    async def __aenter__(self) -> AsyncStoredBody:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing is open."""

    async def finish(self) -> None:
        """Nothing is open."""

    close = finish

    def abandon(self) -> None:
        """Nothing is open."""

    abort = abandon


def _event(answer: ChatCompletion | Completion) -> bytes:
    """Write a whole answer as the one event of a stream, and the event that ends it."""
    body = answer.model_dump(exclude_none=True)
    for choice in body["choices"] if isinstance(answer, ChatCompletion) else ():
        choice["delta"] = choice.pop("message")
        for index, call in enumerate(choice["delta"].get("tool_calls") or ()):
            call.setdefault("index", index)
    return b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(body).encode()
