"""Streams: chunks as they come, and the whole answer they add up to."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Coroutine, Generator, Iterator
from typing import Any, Generic, TypeVar

from .dialects import DONE, ChunkReader
from .errors import ConnectError, IncompleteStreamError, InvalidResponseError, MyLLMError
from .flow import located
from .sse import SSEDecoder
from .transport.http import AsyncOpenBody, OpenBody
from .types import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Logprobs,
    Message,
    ToolCall,
    Usage,
)
from .wire import Kind, Reply, Send

ChunkT = TypeVar("ChunkT", ChatChunk, CompletionChunk)
FinalT = TypeVar("FinalT", ChatCompletion, Completion)


class Accumulator:
    """Adds the chunks of one stream up to the answer that the same call would have had without streaming."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.id = ""
        self.created = 0
        self.model: str | None = None
        self.usage: Usage | None = None
        self._choices: dict[int, ChatChoice | CompletionChoice] = {}
        self._texts: dict[tuple[int, str], list[str]] = {}

    def add(self, chunk: ChatChunk | CompletionChunk) -> None:
        """Add one chunk."""
        self.id = chunk.id or self.id
        self.created = chunk.created or self.created
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        if isinstance(chunk, ChatChunk):
            for delta_choice in chunk.choices:
                chat = self._choices.setdefault(delta_choice.index, ChatChoice(index=delta_choice.index))
                assert isinstance(chat, ChatChoice)
                delta = delta_choice.delta
                for name in ("content", "reasoning", "refusal"):
                    if (text := getattr(delta, name)) is not None:
                        self._texts.setdefault((chat.index, name), []).append(text)
                if delta.role:
                    chat.message.role = delta.role
                for call in delta.tool_calls or ():
                    _add_tool_call(chat.message, call)
                _add_end(chat, delta_choice)
        else:
            for part in chunk.choices:
                choice = self._choices.setdefault(part.index, CompletionChoice(index=part.index))
                self._texts.setdefault((part.index, "text"), []).append(part.text)
                _add_end(choice, part)

    def result(self) -> ChatCompletion | Completion:
        """Return the answer as far as it has come."""
        for (index, name), parts in self._texts.items():
            choice = self._choices[index]
            setattr(choice.message if isinstance(choice, ChatChoice) else choice, name, "".join(parts))
        choices: list[Any] = [choice.model_copy(deep=True) for _, choice in sorted(self._choices.items())]
        cls = ChatCompletion if self.kind == "chat" else Completion
        return cls(id=self.id, created=self.created, model=self.model, usage=self.usage, choices=choices)


def _add_end(choice: ChatChoice | CompletionChoice, part: Any) -> None:
    if part.finish_reason is not None:
        choice.finish_reason = part.finish_reason
    if part.stop_reason is not None:
        choice.stop_reason = part.stop_reason
    if part.logprobs is not None and part.logprobs.content:
        choice.logprobs = choice.logprobs or Logprobs(content=[])
        assert choice.logprobs.content is not None
        choice.logprobs.content.extend(part.logprobs.content)


def _add_tool_call(message: Message, part: ToolCall) -> None:
    message.tool_calls = message.tool_calls or []
    index = part.index if part.index is not None else len(message.tool_calls)
    call = next((c for c in message.tool_calls if c.index == index), None)
    if call is None:
        call = ToolCall(index=index)
        message.tool_calls.append(call)
    call.id = part.id or call.id
    call.type = part.type or call.type
    if part.function.name:
        call.function.name = (call.function.name or "") + part.function.name
    call.function.arguments += part.function.arguments


class StreamParser:
    """The sans-IO half of a stream: body bytes in, chunks out, and the check that it came to its end."""

    def __init__(self, kind: Kind, reader: ChunkReader, send: Send, reply: Reply) -> None:
        self.total = Accumulator(kind)
        self.done = False
        self.closed = False
        self.endpoint = send.endpoint.url
        self.request_id = reply.headers.get("x-request-id") or send.headers["X-Request-Id"]
        self._reader = reader
        self._decoder = SSEDecoder()

    def feed(self, body: bytes) -> Iterator[Any]:
        """Yield the chunks that `body` completes."""
        yield from self._chunks(self._decoder.feed(body))

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
            yield from self._chunks(self._decoder.close())
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
        answer = self.total.result()
        answer._endpoint, answer._request_id = self.endpoint, self.request_id
        return answer

    def _chunks(self, events: Iterator[bytes]) -> Iterator[Any]:
        for data in events:
            try:
                with located(self.endpoint, self.request_id):
                    chunk = self._reader.read(data)
                    if chunk is DONE:
                        self.done = True
                        return
                    if chunk is None:
                        continue
                    self.total.add(chunk)  # type: ignore[arg-type]
            except MyLLMError as exc:
                exc.partial = self.total.result()
                raise
            yield chunk
            if self._reader.ended:
                self.done = True
                return


class Stream(Generic[ChunkT, FinalT]):
    """A stream of chunks: a context manager and an iterator.

        with client.stream_chat(messages) as stream:
            for chunk in stream:
                print(chunk.text, end="")
        answer = stream.final()

    Leaving the context early closes the connection, and the server then stops generating.
    """

    def __init__(self, parser: StreamParser, body: OpenBody) -> None:
        self._parser = parser
        self._chunks = _read(parser, body)
        # A stream that nobody reads or closes must not hold its connection for ever.
        self._finalizer: weakref.finalize[[], Any] = weakref.finalize(self, body.abandon)

    @property
    def request_id(self) -> str:
        """The id under which the request was sent."""
        return self._parser.request_id

    def __iter__(self) -> Iterator[ChunkT]:
        return self

    def __next__(self) -> ChunkT:
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
        self._finalizer()


class AsyncStream(Generic[ChunkT, FinalT]):
    """`Stream` for `AsyncClient`.

    async with client.stream_chat(messages) as stream:
        async for chunk in stream:
            print(chunk.text, end="")
    answer = await stream.final()
    """

    def __init__(self, parser: StreamParser, body: AsyncOpenBody) -> None:
        self._parser = parser
        self._body = body
        self._chunks = _read_async(parser, body)
        self._finalizer: weakref.finalize[[], Any] = weakref.finalize(self, body.abandon)

    @property
    def request_id(self) -> str:
        """The id under which the request was sent."""
        return self._parser.request_id

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        return self

    async def __anext__(self) -> ChunkT:
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
        await self._body.close()


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


def _read(parser: StreamParser, body: OpenBody) -> Iterator[Any]:
    """Yield the chunks of a body; what follows the answer's end is not waited for."""
    with body:
        error: MyLLMError | None = None
        try:
            for data in body:
                yield from parser.feed(data)
                if parser.done:
                    return
        except MyLLMError as exc:
            if exc.partial is not None:  # the parser's own
                raise
            error = exc
        yield from parser.end(error)


async def _read_async(parser: StreamParser, body: AsyncOpenBody) -> AsyncIterator[Any]:
    async with body:
        error: MyLLMError | None = None
        try:
            async for data in body:
                for chunk in parser.feed(data):
                    yield chunk
                if parser.done:
                    return
        except MyLLMError as exc:
            if exc.partial is not None:
                raise
            error = exc
        for chunk in parser.end(error):
            yield chunk
