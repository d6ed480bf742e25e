"""DSPy: an LM called with texts and with typed requests, and `streamify`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy
from dspy import lm15
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMInvalidRequestError,
    LMTimeoutError,
    LMTransportError,
)
from pydantic import BaseModel

import myllm
from myllm_adapters.dspy import LM

from .driver import Answer, Driver, Errors, Messages, Threads, ToolCall, handed

# What DSPy knows of a request; the engine's other parameters travel beside it.
_KNOWN = frozenset(
    {"max_tokens", "temperature", "top_p", "seed", "stop", "logprobs", "tool_choice", "parallel_tool_calls"}
)


class Ask(dspy.Module):
    """The smallest program: it asks the LM."""

    def forward(self, lm: dspy.LM, request: lm15.Request) -> dspy.Prediction:
        return dspy.Prediction(response=lm(request))

    async def aforward(self, lm: dspy.LM, request: lm15.Request) -> dspy.Prediction:
        return dspy.Prediction(response=await lm.acall(request))


class AsyncDSPy(Driver):
    """`acall`, and an asynchronous program."""

    name, page = "dspy, async", "dspy"
    errors = Errors(
        context=ContextWindowExceededError,
        unknown=LMInvalidRequestError,
        refused=LMInvalidRequestError,
        unreachable=LMTransportError,
        timeout=LMTimeoutError,
    )

    def __init__(self, client: myllm.Client) -> None:
        self._lm = LM(client, cache=False, num_retries=0)
        self._program = dspy.streamify(Ask(), is_async_program=self.is_async)

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        return await self._lm.acall(*args, **kwargs)

    async def plain(self, prompt: str, **parameters: Any) -> Answer:
        outputs = await self._call(prompt, **parameters)
        usage = self._lm.history[-1]["usage"]
        return Answer(
            texts=[output if isinstance(output, str) else output["text"] for output in outputs],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] = (),
        schema: type[BaseModel] | None = None,
        **parameters: Any,
    ) -> Answer:
        if "n" in parameters:  # a request is for one answer
            (message,) = messages
            return await self.plain(message["content"], **parameters)
        response = await self._call(self._request(messages, tools, schema, parameters))
        logprobs = response.logprobs
        return Answer(
            texts=[response.message.text or ""],
            calls=[ToolCall(call.id, call.name, call.input) for call in response.tool_calls],
            logprobs=None if logprobs is None else [token.logprob for token in logprobs],
            prompt_tokens=response.usage.input_tokens,
            completion_tokens=response.usage.output_tokens,
        )

    def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        request = self._request(messages, (), None, parameters)

        async def read(hand: Callable[[str], None]) -> None:
            async for part in self._program(lm=self._lm, request=request):
                if not isinstance(part, dspy.Prediction):
                    hand(part.choices[0].delta.content or "")

        # What `streamify` gives is not to be left half read: a task that reads it can be cancelled.
        return handed(read)

    def _request(
        self, messages: Messages, tools: Sequence[Any], schema: type[BaseModel] | None, parameters: Any
    ) -> lm15.Request:
        body: dict[str, Any] = {"model": self._lm.model, "messages": list(messages)}
        body.update({name: value for name, value in parameters.items() if name in _KNOWN})
        if tools:
            body["tools"] = list(tools)
        if schema is not None:
            form = {"name": schema.__name__, "schema": schema.model_json_schema()}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        request = lm15.request_from_openai_chat(body)
        beside = {name: value for name, value in parameters.items() if name not in _KNOWN}
        return replace(request, config=replace(request.config, extensions=beside or None))


class DSPy(AsyncDSPy):
    """The LM called synchronously, and a synchronous program, streamed as DSPy does by default."""

    name = "dspy"
    is_async = False

    def __init__(self, client: myllm.Client) -> None:
        super().__init__(client)
        self._threads = Threads()

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        return await self._threads.run(self._lm, *args, **kwargs)
