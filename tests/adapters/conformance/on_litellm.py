"""LiteLLM: `completion`, `acompletion` and their streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any

import litellm
from pydantic import BaseModel

import myllm
from myllm_adapters.litellm import register

from .driver import MODEL, Answer, Driver, Errors, Messages, Threads, ToolCall

_numbers = count()


class AsyncLiteLLM(Driver):
    """The asynchronous functions."""

    name, page = "litellm, async", "litellm"
    errors = Errors(
        context=litellm.ContextWindowExceededError,
        unknown=litellm.BadRequestError,
        refused=litellm.BadRequestError,
        unreachable=litellm.APIConnectionError,
        timeout=litellm.Timeout,
    )

    def __init__(self, client: myllm.Client) -> None:
        provider = f"myllm{next(_numbers)}"  # each has a client of its own
        register(client, provider)
        self._common = {"model": f"{provider}/{MODEL}", "timeout": client.timeout.total}

    async def plain(self, prompt: str, **parameters: Any) -> Answer:
        return await self.ask([{"role": "user", "content": prompt}], **parameters)

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] = (),
        schema: type[BaseModel] | None = None,
        **parameters: Any,
    ) -> Answer:
        return _answer(await litellm.acompletion(**self._arguments(messages, tools, schema, parameters)))

    async def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        stream = await litellm.acompletion(**self._arguments(messages, (), None, parameters), stream=True)
        async with aclosing(stream):
            async for chunk in stream:
                yield chunk.choices[0].delta.content or ""

    def _arguments(
        self, messages: Messages, tools: Sequence[Any], schema: type[BaseModel] | None, parameters: Any
    ) -> dict[str, Any]:
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        if schema is not None:
            more["response_format"] = schema
        return {**self._common, "messages": list(messages), **more, **parameters}


class LiteLLM(AsyncLiteLLM):
    """The synchronous functions."""

    name = "litellm"
    is_async = False

    def __init__(self, client: myllm.Client) -> None:
        super().__init__(client)
        self._threads = Threads()

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] = (),
        schema: type[BaseModel] | None = None,
        **parameters: Any,
    ) -> Answer:
        arguments = self._arguments(messages, tools, schema, parameters)
        return _answer(await self._threads.run(litellm.completion, **arguments))

    def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        arguments = self._arguments(messages, (), None, parameters)

        def pieces() -> Iterator[str]:
            # A synchronous stream of LiteLLM's has no `close`: it ends when it is dropped.
            for chunk in litellm.completion(**arguments, stream=True):
                yield chunk.choices[0].delta.content or ""

        return self._threads.iterate(pieces)


def _answer(response: Any) -> Answer:
    first = response.choices[0]
    logprobs = getattr(first, "logprobs", None)
    return Answer(
        texts=[choice.message.content or "" for choice in response.choices],
        calls=[
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in first.message.tool_calls or ()
        ],
        logprobs=None if logprobs is None else [token.logprob for token in logprobs.content],
        prompt_tokens=response.usage.prompt_tokens,
        completion_tokens=response.usage.completion_tokens,
    )
