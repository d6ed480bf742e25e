"""Streams: chunks as they come, and the whole answer they add up to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Any, Generic, TypeVar

from .dialects import DONE, ChunkReader
from .errors import ConnectError, IncompleteStreamError, MyLLMError
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
        self.endpoint = send.endpoint.url
        self.request_id = reply.headers.get("x-request-id") or send.headers["X-Request-Id"]
        self._reader = reader
        self._decoder = SSEDecoder()

    def feed(self, body: bytes) -> Iterator[Any]:
        """Yield the chunks that `body` completes; what follows the end is read, so that the connection can
        be used again, and ignored."""
        if not self.done:
            yield from self._chunks(self._decoder.feed(body))

    def close(self) -> Iterator[Any]:
        """Yield what the body's end completes.

        Raises:
            IncompleteStreamError: the body ended before the answer did.
        """
        if not self.done:
            yield from self._chunks(self._decoder.close())
        if not self.done and not self._reader.complete:
            raise IncompleteStreamError(
                f"The stream from {self.endpoint} broke off before its end.",
                partial=self.total.result(),
                endpoint=self.endpoint,
                request_id=self.request_id,
                hint="The server may have been stopped or have crashed; `partial` holds what had come.",
            )
        self.done = True

    def _chunks(self, events: Iterator[bytes]) -> Iterator[Any]:
        try:
            for data in events:
                chunk = self._reader.read(data)
                if chunk is DONE:
                    self.done = True
                    return
                if chunk is not None:
                    self.total.add(chunk)  # type: ignore[arg-type]
                    yield chunk
        except MyLLMError as exc:
            exc.endpoint, exc.request_id = self.endpoint, self.request_id
            raise

    def final(self) -> Any:
        """Return the accumulated answer."""
        answer = self.total.result()
        answer._endpoint, answer._request_id = self.endpoint, self.request_id
        return answer


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
        self._body = body
        self._chunks: Generator[ChunkT, None, None] = self._run()

    @property
    def request_id(self) -> str:
        """The id under which the request was sent."""
        return self._parser.request_id

    def __iter__(self) -> Iterator[ChunkT]:
        return self._chunks

    def _run(self) -> Generator[ChunkT, None, None]:
        with self._body as body:
            try:
                for data in body:
                    yield from self._parser.feed(data)
            except MyLLMError as exc:
                raise _broken(exc, self._parser) from exc
            yield from self._parser.close()

    def final(self) -> FinalT:
        """Read what is left of the stream and return the whole answer.

        Raises:
            MyLLMError: the context was left before the stream's end.
        """
        for _ in self._chunks:
            pass
        if not self._parser.done:
            raise _left_early(self._parser)
        answer: FinalT = self._parser.final()
        return answer

    def __enter__(self) -> Stream[ChunkT, FinalT]:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; nothing more comes from the iterator."""
        self._chunks.close()
        self._body.close()


class AsyncStream(Generic[ChunkT, FinalT]):
    """`Stream` for `AsyncClient`: `async with`, `async for`, `await stream.final()`."""

    def __init__(self, parser: StreamParser, body: AsyncOpenBody) -> None:
        self._parser = parser
        self._body = body
        self._chunks: AsyncGenerator[ChunkT, None] = self._run()

    @property
    def request_id(self) -> str:
        """The id under which the request was sent."""
        return self._parser.request_id

    def __aiter__(self) -> AsyncIterator[ChunkT]:
        return self._chunks

    async def _run(self) -> AsyncGenerator[ChunkT, None]:
        async with self._body as body:
            try:
                async for data in body:
                    for chunk in self._parser.feed(data):
                        yield chunk
            except MyLLMError as exc:
                raise _broken(exc, self._parser) from exc
            for chunk in self._parser.close():
                yield chunk

    async def final(self) -> FinalT:
        """See `Stream.final`."""
        async for _ in self._chunks:
            pass
        if not self._parser.done:
            raise _left_early(self._parser)
        answer: FinalT = self._parser.final()
        return answer

    async def __aenter__(self) -> AsyncStream[ChunkT, FinalT]:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Stream.close`."""
        await self._chunks.aclose()
        await self._body.close()


def _broken(error: MyLLMError, parser: StreamParser) -> MyLLMError:
    """Return the error for a stream that broke, with what had come: nothing that a server sent is lost."""
    partial = parser.total.result()
    if isinstance(error, ConnectError):
        return IncompleteStreamError(
            error.message,
            partial=partial,
            endpoint=parser.endpoint,
            request_id=parser.request_id,
            hint=error.hint,
        )
    error.partial = partial
    return error


def _left_early(parser: StreamParser) -> IncompleteStreamError:
    return IncompleteStreamError(
        "The stream was closed before its end, so there is no whole answer.",
        partial=parser.total.result(),
        endpoint=parser.endpoint,
        request_id=parser.request_id,
    )
