"""The frameworks' routes that are compared: through our adapters, and each framework's own.

Each is used as its documentation says, and keeps what it makes, as a program does. A framework is imported
when its route is made: a process holds the one that it measures.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cached_property
from typing import Any

from benchmarks._peers import MESSAGES, Peer
from benchmarks.stub import MODEL, TEXT

QUESTION = MESSAGES[0]["content"]


class _DSPy(Peer):
    """https://dspy.ai/learn/programming/language_models: the LM itself, without a program's prompts."""

    package = "dspy"
    imports = "import dspy"

    @cached_property
    def _lm(self) -> Any:
        raise NotImplementedError

    def call(self) -> str:
        return self._lm(QUESTION)[0]

    async def acall(self) -> str:
        return (await self._lm.acall(QUESTION))[0]

    def stream(self, model: str) -> str:
        return "".join(map(self._text, self._streaming(asynchronous=False)(lm=self._lm)))

    async def astream(self, model: str) -> str:
        return "".join([self._text(part) async for part in self._streaming(asynchronous=True)(lm=self._lm)])

    @staticmethod
    def _streaming(asynchronous: bool) -> Callable[..., Any]:
        import dspy

        class Ask(dspy.Module):
            def forward(self, lm: Any) -> Any:
                return dspy.Prediction(answers=lm(QUESTION))

            async def aforward(self, lm: Any) -> Any:
                return dspy.Prediction(answers=await lm.acall(QUESTION))

        return dspy.streamify(Ask(), is_async_program=asynchronous, async_streaming=asynchronous)

    @staticmethod
    def _text(part: Any) -> str:
        """Return the text of a chunk; the last thing that comes is the program's whole prediction."""
        return part.choices[0].delta.content or "" if hasattr(part, "choices") else ""


class DSPyMyLLM(_DSPy):
    """Our LM."""

    @cached_property
    def _lm(self) -> Any:
        from myllm_adapters.dspy import Client

        return Client(MODEL, self.url, cache=False)


class DSPyLM15(_DSPy):
    """DSPy's own clients of today."""

    @cached_property
    def _lm(self) -> Any:
        import dspy

        return dspy.LM(f"hosted_vllm/{MODEL}", api_base=f"{self.url}/v1", api_key="none", cache=False)


class DSPyLiteLLM(_DSPy):
    """DSPy's own way over LiteLLM."""

    @cached_property
    def _lm(self) -> Any:
        import dspy

        return dspy.LM(
            f"hosted_vllm/{MODEL}",
            api_base=f"{self.url}/v1",
            api_key="none",
            cache=False,
            engine="litellm",
        )


class _LiteLLM(Peer):
    """https://docs.litellm.ai/docs/#litellm-python-sdk."""

    package = "litellm"
    imports = "from litellm import acompletion, completion"

    @property
    def _arguments(self) -> dict[str, Any]:
        raise NotImplementedError

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

    from benchmarks.stub import CHUNKS, WORDS

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


class _AutoGen(Peer):
    """https://docs.ag2.ai/0.9/docs/user-guide/basic-concepts/llm-configuration: what an agent asks with."""

    package = "autogen"
    imports = "from autogen import OpenAIWrapper"
    has_async = False  # its clients are synchronous: asynchronous replies wait in threads

    def _entry(self, **more: Any) -> Any:
        raise NotImplementedError

    @cached_property
    def _wrapper(self) -> Any:
        from autogen import OpenAIWrapper

        return OpenAIWrapper(config_list=[self._entry()])

    @cached_property
    def _streaming(self) -> Any:
        from autogen import OpenAIWrapper

        return OpenAIWrapper(config_list=[self._entry(stream=True)])

    def call(self) -> str:
        return self._text(self._wrapper.create(messages=MESSAGES))

    def stream(self, model: str) -> str:
        from autogen.io.base import IOStream

        with IOStream.set_default(_Silent()):  # it would be printed
            return self._text(self._streaming.create(messages=MESSAGES))

    def _text(self, response: Any) -> str:
        return self._wrapper.extract_text_or_completion_object(response)[0]


class _Silent:
    """AutoGen's output, thrown away."""

    def print(self, *_: Any, **__: Any) -> None: ...

    def send(self, _: Any) -> None: ...

    def input(self, prompt: str = "", *, password: bool = False) -> str:
        raise EOFError


class AutoGenMyLLM(_AutoGen):
    """Our entry."""

    def _entry(self, **more: Any) -> Any:
        from myllm_adapters.autogen import MyLLMConfigEntry

        return MyLLMConfigEntry(MODEL, base_url=self.url, **more)


class AutoGenOpenAI(_AutoGen):
    """AutoGen's own entry for a server with OpenAI's API."""

    def _entry(self, **more: Any) -> Any:
        return {
            "model": MODEL,
            "base_url": f"{self.url}/v1",
            "api_key": "none",
            "price": [0, 0],
            **more,
        }


ROUTES: dict[str, type[Peer]] = {
    "dspy, myllm": DSPyMyLLM,
    "dspy, lm15": DSPyLM15,
    "dspy, litellm": DSPyLiteLLM,
    "litellm, myllm": LiteLLMMyLLM,
    "litellm, openai": LiteLLMOpenAI,
    "litellm, bare provider": LiteLLMBare,
    "litellm, empty provider": LiteLLMEmpty,
    "autogen, myllm": AutoGenMyLLM,
    "autogen, openai": AutoGenOpenAI,
}

FRAMEWORKS = {
    framework: [route for route in ROUTES if route.startswith(f"{framework}, ")]
    for framework in dict.fromkeys(route.partition(",")[0] for route in ROUTES)
}
"""The routes of each framework, ours first."""
