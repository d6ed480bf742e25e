"""The SDK's streams as LiteLLM's chunks.

Deltas go as `ModelResponseStream`, which keeps index, logprobs and tool calls but loses the server's usage
and ends the stream at the first finish_reason; the end therefore goes as one `GenericStreamingChunk` with
both (`_dispatch_provider_chunk` in LiteLLM's `streaming_handler.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from typing import Any

from litellm.types.utils import GenericStreamingChunk, ModelResponseStream

from myllm import ChatChunk, CompletionChunk, Stream, Usage
from myllm.stream import AsyncStream

from .responses import of_provider

Chunk = ModelResponseStream | GenericStreamingChunk
AnyStream = Stream[Any, Any]
AnyAsyncStream = AsyncStream[Any, Any]


class ChunkWriter:
    """Writes LiteLLM's chunks of one answer, and keeps what its end tells.

    Args:
        provider, model: for chunks that do not say it themselves.
        width: choices of each stream, where several streams make one answer: they are numbered through.
    """

    def __init__(self, provider: str, model: str, width: int) -> None:
        self._provider = provider
        self._model = model
        self._width = width
        self._reasons: dict[int, str] = {}
        self._usage: dict[int, Usage] = {}

    def delta(self, chunk: ChatChunk | CompletionChunk, position: int) -> ModelResponseStream | None:
        """Return what a chunk of the stream at `position` adds, if anything."""
        if chunk.usage is not None:
            self._usage[position] = chunk.usage  # the last one counts: some servers tell it again and again
        choices: list[dict[str, Any]] = []
        for choice in chunk.choices:
            index = position * self._width + choice.index
            if choice.finish_reason is not None:
                self._reasons[index] = choice.finish_reason
            if isinstance(chunk, ChatChunk):
                delta = choice.delta.model_dump(exclude_none=True)  # type: ignore[union-attr]
            else:
                delta = {"content": choice.text} if choice.text else {}  # type: ignore[union-attr]
            if "reasoning" in delta:
                delta["reasoning_content"] = delta.pop("reasoning")
            logprobs = choice.logprobs.model_dump(exclude_none=True) if choice.logprobs else None
            if delta or logprobs:
                choices.append({"index": index, "delta": delta, "logprobs": logprobs})
        if not choices:
            return None
        return of_provider(
            ModelResponseStream(
                id=chunk.id or None,
                created=chunk.created or None,
                model=chunk.model or self._model,
                choices=choices,  # type: ignore[arg-type]  # it takes dicts, whatever it says
            ),
            self._provider,
        )

    def end(self) -> GenericStreamingChunk:
        """Return the last chunk."""
        counts = self._usage.values()
        usage: Any = None
        if len(counts) == 1:
            usage = next(iter(counts)).model_dump(exclude_none=True)
        elif counts:
            usage = {
                "prompt_tokens": sum(count.prompt_tokens for count in counts),
                "completion_tokens": sum(count.completion_tokens for count in counts),
                "total_tokens": sum(count.total_tokens for count in counts),
            }
        return GenericStreamingChunk(
            text="",
            tool_use=None,
            is_finished=True,
            finish_reason=self._reasons[min(self._reasons)] if self._reasons else "stop",
            usage=usage,
            index=0,
        )


class Chunks:
    """LiteLLM's chunks of an answer that comes in one or more streams, which are read in turn.

    Closing it closes the streams even before its first chunk, when a generator would not have begun; one that
    is dropped is closed by the SDK's streams themselves.
    """

    def __init__(
        self, streams: Sequence[AnyStream], writer: ChunkWriter, errors: AbstractContextManager[None]
    ) -> None:
        self._streams = streams
        self._closed = False
        self._chunks = self._run(streams, writer, errors)

    @staticmethod
    def _run(
        streams: Sequence[AnyStream], writer: ChunkWriter, errors: AbstractContextManager[None]
    ) -> Iterator[Chunk]:
        with errors, ExitStack() as opened:
            for stream in streams:
                opened.enter_context(stream)
            for position, stream in enumerate(streams):
                for chunk in stream:
                    if (delta := writer.delta(chunk, position)) is not None:
                        yield delta
        yield writer.end()

    def __iter__(self) -> Chunks:
        return self

    def __next__(self) -> Chunk:
        if self._closed:
            raise StopIteration
        return next(self._chunks)

    def close(self) -> None:
        """Close the connections; the server then stops generating. Also from another thread."""
        self._closed = True
        for stream in self._streams:
            stream.close()


async def async_chunks(streams: Sequence[AnyAsyncStream], writer: ChunkWriter) -> AsyncIterator[Chunk]:
    """Yield LiteLLM's chunks of an answer that comes in one or more streams; see `Chunks`."""
    async with AsyncExitStack() as opened:
        for stream in streams:
            await opened.enter_async_context(stream)
        for position, stream in enumerate(streams):
            async for chunk in stream:
                if (delta := writer.delta(chunk, position)) is not None:
                    yield delta
    yield writer.end()
