"""LiteLLM, over our provider, its own, and what a provider costs at least."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from typing import Any

from benchmarks._peers import MESSAGES, Peer
from benchmarks.stub import CHUNKS, MODEL, TEXT, WORDS


class _LiteLLM(Peer, ABC):
    """https://docs.litellm.ai/docs/#litellm-python-sdk."""

    package = "litellm"
    imports = "from litellm import acompletion, completion"

    @property
    @abstractmethod
    def _arguments(self) -> dict[str, Any]: ...

    def call(self) -> str:
        from litellm import completion

        return completion(**self._arguments).choices[0].message.content

    async def acall(self) -> str:
        from litellm import acompletion

        return (await acompletion(**self._arguments)).choices[0].message.content

    def stream(self, model: str) -> str:
        from litellm import completion

        stream = completion(**self._arguments, stream=True)
        return "".join([chunk.choices[0].delta.content or "" for chunk in stream])

    async def astream(self, model: str) -> str:
        from litellm import acompletion

        stream = await acompletion(**self._arguments, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


class LiteLLMMyLLM(_LiteLLM):
    """Our provider."""

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        import myllm_adapters.litellm  # noqa: F401 - registers it

        return {"model": f"myllm/{MODEL}", "api_base": self.url, "messages": MESSAGES}


class LiteLLMOpenAI(_LiteLLM):
    """LiteLLM's own, over the openai SDK."""

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        return {
            "model": f"openai/{MODEL}",
            "api_base": f"{self.url}/v1",
            "api_key": "none",
            "messages": MESSAGES,
        }


class LiteLLMBare(_LiteLLM):
    """A provider that only posts with httpx and hands the JSON on: the least that one can do."""

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        return _registered(_bare_provider(f"{self.url}/v1/chat/completions"))


class LiteLLMEmpty(_LiteLLM):
    """A provider that asks nobody: what LiteLLM itself costs."""

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        return _registered(_empty_provider())


def _registered(handler: Any) -> dict[str, Any]:
    import litellm
    from litellm.utils import custom_llm_setup

    litellm.custom_provider_map.append({"provider": "bare", "custom_handler": handler})
    custom_llm_setup()
    return {"model": f"bare/{MODEL}", "messages": MESSAGES}


def _bare_provider(url: str) -> Any:
    """Return the handler; LiteLLM's classes are not there before."""
    import httpx
    from litellm.llms.custom_llm import CustomLLM
    from litellm.types.utils import GenericStreamingChunk, ModelResponse

    client, async_client = httpx.Client(), httpx.AsyncClient()

    def piece(line: str) -> GenericStreamingChunk | None:
        if not line.startswith("data: {"):
            return None
        choice = json.loads(line[6:])["choices"][0]
        reason = choice["finish_reason"]
        return GenericStreamingChunk(
            text=choice["delta"].get("content") or "",
            tool_use=None,
            is_finished=reason is not None,
            finish_reason=reason or "",
            usage=None,
            index=0,
        )

    class Bare(CustomLLM):
        def completion(self, messages: Any, **_: Any) -> ModelResponse:
            response = client.post(url, json={"model": MODEL, "messages": messages})
            return ModelResponse(**response.json())

        async def acompletion(self, messages: Any, **_: Any) -> ModelResponse:
            response = await async_client.post(url, json={"model": MODEL, "messages": messages})
            return ModelResponse(**response.json())

        def streaming(self, messages: Any, **_: Any) -> Iterator[GenericStreamingChunk]:
            body = {"model": MODEL, "messages": messages, "stream": True}
            with client.stream("POST", url, json=body) as response:
                yield from filter(None, map(piece, response.iter_lines()))

        async def astreaming(self, messages: Any, **_: Any) -> AsyncIterator[GenericStreamingChunk]:
            body = {"model": MODEL, "messages": messages, "stream": True}
            async with async_client.stream("POST", url, json=body) as response:
                async for line in response.aiter_lines():
                    if (made := piece(line)) is not None:
                        yield made

    return Bare()


def _empty_provider() -> Any:
    from litellm.llms.custom_llm import CustomLLM
    from litellm.types.utils import GenericStreamingChunk, ModelResponse

    message = {"role": "assistant", "content": TEXT}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]

    def pieces() -> Iterator[GenericStreamingChunk]:
        for word in WORDS * (CHUNKS // len(WORDS)):
            yield GenericStreamingChunk(
                text=word, tool_use=None, is_finished=False, finish_reason="", usage=None, index=0
            )
        yield GenericStreamingChunk(
            text="", tool_use=None, is_finished=True, finish_reason="stop", usage=None, index=0
        )

    class Empty(CustomLLM):
        def completion(self, **_: Any) -> ModelResponse:
            return ModelResponse(model=MODEL, choices=choices)

        async def acompletion(self, **_: Any) -> ModelResponse:
            return ModelResponse(model=MODEL, choices=choices)

        def streaming(self, **_: Any) -> Iterator[GenericStreamingChunk]:
            return pieces()

        async def astreaming(self, **_: Any) -> AsyncIterator[GenericStreamingChunk]:
            for made in pieces():
                yield made

    return Empty()
