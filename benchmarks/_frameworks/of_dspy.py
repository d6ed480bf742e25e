"""DSPy, over our LM and over its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any

from benchmarks._peers import QUESTION, Peer
from benchmarks.stub import MODEL


class _DSPy(Peer, ABC):
    """https://dspy.ai/learn/programming/language_models: the LM itself, without a program's prompts."""

    package = "dspy"
    imports = "import dspy"

    @property
    @abstractmethod
    def _lm(self) -> Any: ...

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
