"""LiteLLM's handler (`litellm/llms/custom_llm.py`), which calls these methods with keywords."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from litellm.llms.custom_llm import CustomLLM

import myllm
from myllm.base import BaseClient

from .catalog import describe
from .connections import Connections
from .errors import litellm_errors
from .requests import EmbeddingJob, Job
from .responses import chat_response, embedding_response, templated_response, text_response
from .sending import PROMPTS_AT_ONCE, aask, aeach_prompt, aopen_streams, ask, each_prompt, open_streams
from .streams import Chunks, ChunkWriter, async_chunks


class MyLLMProvider(CustomLLM):
    """LiteLLM's handler for a provider; usable by all threads and event loops.

    Its methods raise LiteLLM's exceptions only, with the SDK's messages.

    Args:
        client: what calls without `api_base` go through; None: see `myllm_adapters.litellm`.
        provider: the prefix of the models that come here.
    """

    def __init__(self, client: BaseClient | None = None, provider: str = "myllm") -> None:
        super().__init__()
        self.provider = provider
        self._connections = Connections(client)

    def completion(self, *_: Any, **request: Any) -> Any:
        """Answer a chat, or the prompts of `text_completion`."""
        with self._errors(request):
            job = self._job(request)
            client = self._connections.sync(job.place)
            if job.kind == "chat":
                return self._response(job, [ask(job, lambda: client.chat(job.messages, **job.arguments))])
            return self._response(
                job, each_prompt(job, lambda prompt: client.complete(prompt, **job.arguments))
            )

    async def acompletion(self, *_: Any, **request: Any) -> Any:
        """See `completion`."""
        with self._errors(request):
            job = self._job(request)
            client = await self._connections.asynchronous(job.place)
            if job.kind == "chat":
                answer = await aask(job, lambda: client.chat(job.messages, **job.arguments))
                return self._response(job, [answer])
            return self._response(
                job, await aeach_prompt(job, lambda prompt: client.complete(prompt, **job.arguments))
            )

    def streaming(self, *_: Any, **request: Any) -> Iterator[Any]:
        """Answer chunk by chunk; a refusal is raised here, before there is a stream."""
        with self._errors(request):
            job = self._job(request, stream=True)
            streams = open_streams(job, self._connections.sync(job.place))
        return Chunks(streams, self._writer(job), self._errors(request))

    async def astreaming(  # type: ignore[override]  # LiteLLM's own docs return an async generator here
        self, *_: Any, **request: Any
    ) -> AsyncIterator[Any]:
        """See `streaming`; LiteLLM wants an async generator, so a refusal is raised by the first chunk."""
        with self._errors(request):
            job = self._job(request, stream=True)
            streams = await aopen_streams(job, await self._connections.asynchronous(job.place))
            async for chunk in async_chunks(streams, self._writer(job)):
                yield chunk

    def embedding(self, *_: Any, **request: Any) -> Any:
        """Return the vectors of texts."""
        with self._errors(request):
            job = EmbeddingJob.read(request, self._connections)
            answer = self._connections.sync(job.place).embed(job.texts, **job.arguments)
            return self._vectors(job, answer)

    async def aembedding(self, *_: Any, **request: Any) -> Any:
        """See `embedding`."""
        with self._errors(request):
            job = EmbeddingJob.read(request, self._connections)
            client = await self._connections.asynchronous(job.place)
            return self._vectors(job, await client.embed(job.texts, **job.arguments))

    def _errors(self, request: Any) -> AbstractContextManager[None]:
        return litellm_errors(self.provider, request["model"])

    def _job(self, request: Any, *, stream: bool = False) -> Job:
        job = Job.read(request, self._connections, self.provider, stream=stream)
        if stream and len(job.prompts) > PROMPTS_AT_ONCE:
            raise myllm.InvalidParameterError(
                f"`prompt` has {len(job.prompts)} texts; a stream takes {PROMPTS_AT_ONCE} at most.",
                param="prompt",
                hint="Leave out `stream`, or make several calls.",
            )
        return job

    def _response(self, job: Job, answers: Sequence[Any]) -> Any:
        describe(self.provider, job.model, "chat")
        raw = [answer.raw for answer in answers]
        job.logging.post_call(original_response=raw[0] if len(raw) == 1 else raw)
        if job.kind == "text":
            return text_response(answers, self.provider, job.model)
        make: Callable[..., Any] = chat_response if job.kind == "chat" else templated_response
        return make(answers[0], self.provider, job.model)

    def _vectors(self, job: EmbeddingJob, answer: myllm.Embeddings) -> Any:
        describe(self.provider, job.model, "embedding")
        job.logging.post_call(original_response=answer.raw)
        return embedding_response(answer, self.provider, job.model)

    def _writer(self, job: Job) -> ChunkWriter:
        describe(self.provider, job.model, "chat")
        return ChunkWriter(self.provider, job.model, job.width)
