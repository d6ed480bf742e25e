"""AG2 1.x (`import ag2`) on your own servers.

    from ag2 import Agent
    from myllm_adapters.ag2 import MyLLMConfig

    agent = Agent("assistant", prompt="You are brief.", config=MyLLMConfig("smollm2", port=8000))

`MyLLMConfig` is a `ModelConfig` of AG2's, which every `Agent` and `ask` takes. The errors of its calls are
`myllm.errors`'. AG2 before 1.0 is AutoGen's classic API: `myllm_adapters.autogen`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import myllm
from myllm.base import BaseClient
from myllm.endpoints import PortSpec, UrlSpec
from myllm.types import ToolCall

from ._clients import CALL_OPTIONS, async_client, refuse_unfit
from ._extra import missing_extra

try:
    from ag2.config import LLMClient, ModelConfig, ModelProvider
    from ag2.context import ConversationContext
    from ag2.events import (
        BaseEvent,
        ModelMessage,
        ModelMessageChunk,
        ModelReasoning,
        ModelResponse,
        ToolCallEvent,
        ToolCallsEvent,
        Usage,
    )
    from ag2.response import ResponseProto
    from ag2.tools.schemas import ToolSchema
    from fast_depends.library.serializer import SerializerProto
except ImportError as exc:
    raise missing_extra(__name__, "ag2", exc) from exc

from ._ag2.requests import rows, shape_options, tool_options
from ._messages import Row

__all__ = ["MyLLMClient", "MyLLMConfig"]

# AG2's list of providers is closed; the servers' API is this one's.
_PROVIDER = ModelProvider.OPENAI
_NO_PLACE = ("logprobs", "top_logprobs", "prompt_logprobs")
# What a copy with other values of these needs new connections for.
_CONNECTION = frozenset(
    {"base_url", "url", "port", "api_key", "client", "engine", "dialect", "headers", "http", "endpoints",
     "policy", "breaker", "health_interval", "max_concurrency", "requests_per_second", "hooks"}
)  # fmt: skip


class MyLLMConfig(ModelConfig):
    """A model on servers of your own, as a model configuration of AG2.

    Its connections are shared by all agents that it is given to, and by its copies; `await config.close()`
    closes them, but for those of an `AsyncClient` that was given.

    Args:
        model: the served model's name; None asks for the first one that the server serves.
        base_url: where the server is, with `/v1` or without, or a list of servers of the same model; also
            spelled `url`. Default: `MYLLM_BASE_URL`, then `OPENAI_BASE_URL`, then http://localhost:8000.
        port: instead of a port in the URL.
        api_key: the servers' key. Default: `MYLLM_API_KEY`.
        client: instead of all these, a `myllm.AsyncClient`, whose connections are shared, or a
            `myllm.Client`, whose settings are taken over.
        engine: instead of a server, an engine in this process, as `myllm.AsyncClient` takes it.
        streaming: send what the model says chunk by chunk, as `ModelMessageChunk` events.
        **settings: as `myllm.AsyncClient` takes them (`timeout`, `max_retries`, `message_policy`, which is
            "auto" here, …), parameters of every call (`temperature=…`, `top_k=…`, …), `extra_body` and
            `session`.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        MissingExtraError: `engine=` without an engine installed.
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: UrlSpec | None = None,
        *,
        url: UrlSpec | None = None,
        port: PortSpec = None,
        api_key: str | None = None,
        client: BaseClient | None = None,
        engine: Any = None,
        streaming: bool = False,
        **settings: Any,
    ) -> None:
        places = {
            "base_url": base_url, "url": url, "port": port, "api_key": api_key, "client": client,
            "engine": engine,
        }  # fmt: skip
        self._given = {"model": model, **places, "streaming": streaming, **settings}
        options = {name: value for name, value in settings.items() if name in CALL_OPTIONS}
        rest = {name: value for name, value in settings.items() if name not in CALL_OPTIONS}
        self._set(async_client(model, **places, **rest), options, streaming)

    def _set(self, client: myllm.AsyncClient, options: dict[str, Any], streaming: bool) -> None:
        refuse_unfit(client.defaults, "AG2", no_place=_NO_PLACE)
        self._client, self._options, self.streaming = client, options, streaming

    @property
    def client(self) -> myllm.AsyncClient:
        """The SDK's client under it, for what AG2 has no word for."""
        return self._client

    @property
    def provider(self) -> ModelProvider:
        """The provider whose API it is."""
        return _PROVIDER

    @property
    def model(self) -> str:
        """The model's name; empty where the server's first one is asked for."""
        return self._client.model or ""

    def copy(self, /, **overrides: Any) -> MyLLMConfig:
        """Return a configuration with other arguments; `None` removes a parameter.

        It shares the connections unless an argument says to go elsewhere.

        Raises:
            UnknownParameterError, InvalidParameterError: an argument is not understood.
        """
        given = {**self._given, **overrides}
        if not _CONNECTION.isdisjoint(overrides):
            return type(self)(**given)
        options = {name: given[name] for name in CALL_OPTIONS & given.keys()}
        changes = {name: overrides[name] for name in overrides.keys() - CALL_OPTIONS - {"streaming"}}
        twin = object.__new__(type(self))
        twin._given = given
        twin._set(self._client.with_options(**changes), options, given["streaming"])
        return twin

    def create(self) -> MyLLMClient:
        """Return what AG2 calls for each turn."""
        return MyLLMClient(self._client, streaming=self.streaming, **self._options)

    async def close(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        if not isinstance(self._given["client"], myllm.AsyncClient):
            await self._client.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._client!r}, streaming={self.streaming!r})"


class MyLLMClient(LLMClient):
    """Answers AG2's turns; `MyLLMConfig.create` makes it.

    Args:
        client: where to send; its parameters are those of every turn.
        streaming: whether to send `ModelMessageChunk` events.
        **options: options of every call (`extra_body`, `session`).
    """

    def __init__(self, client: myllm.AsyncClient, *, streaming: bool = False, **options: Any) -> None:
        self._client = client
        self._streaming = streaming
        self._options = options

    async def __call__(
        self,
        messages: Sequence[BaseEvent],
        context: ConversationContext,
        *,
        tools: Iterable[ToolSchema],
        response_schema: ResponseProto[Any] | None,
        serializer: SerializerProto,
    ) -> ModelResponse:
        """Answer a conversation; what the model thinks and says is also sent to the context.

        Raises:
            ag2.exceptions.UnsupportedInputError, ag2.exceptions.UnsupportedToolError: something that no
                server of this API reads; nothing was sent.
            MyLLMError: the call failed; see `myllm.errors`.
        """
        prompt = list(context.prompt)
        if response_schema is not None and response_schema.system_prompt:
            prompt.append(response_schema.system_prompt)
        said = rows(prompt, messages, serializer)
        options = {**self._options, **tool_options(tools), **shape_options(response_schema)}
        if self._streaming:
            answer = await self._streamed(said, options, context)
        else:
            answer = await self._client.chat(said, **options)
            if answer.message.reasoning:
                await context.send(ModelReasoning(answer.message.reasoning))
        message = ModelMessage(answer.text) if answer.text else None
        if message is not None:
            await context.send(message)
        return _response(answer, message)

    async def _streamed(
        self, said: list[Row], options: dict[str, Any], context: ConversationContext
    ) -> myllm.ChatCompletion:
        async with self._client.stream_chat(said, **options) as stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.reasoning:
                        await context.send(ModelReasoning(choice.delta.reasoning))
                    if choice.delta.content:
                        await context.send(ModelMessageChunk(choice.delta.content))
        return await stream.final()


def _response(answer: myllm.ChatCompletion, message: ModelMessage | None) -> ModelResponse:
    choice = answer.choices[0]
    calls = [_call(call) for call in choice.message.tool_calls or ()]
    return ModelResponse(
        message=message,
        tool_calls=ToolCallsEvent(calls),
        usage=_usage(answer.usage),
        model=answer.model,
        provider=_PROVIDER.value,
        finish_reason=choice.finish_reason,
        response_id=answer.id or None,
    )


def _call(call: ToolCall) -> ToolCallEvent:
    given: dict[str, Any] = {"id": call.id} if call.id else {}  # AG2 makes one where the server gives none
    function = call.function
    return ToolCallEvent(name=function.name or "", arguments=function.arguments or "{}", **given)


def _usage(usage: myllm.Usage | None) -> Usage:
    if usage is None:
        return Usage()
    prompt, completion = usage.prompt_tokens_details or {}, usage.completion_tokens_details or {}
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cache_read_input_tokens=prompt.get("cached_tokens"),
        thinking_tokens=completion.get("reasoning_tokens"),
    )
