"""AutoGen's AgentChat (`autogen-agentchat`, which `pip install pyautogen` gives today) on your own servers.

    from autogen_agentchat.agents import AssistantAgent
    from myllm_adapters.agentchat import MyLLMChatCompletionClient

    agent = AssistantAgent("assistant", MyLLMChatCompletionClient("smollm2", port=8000))

`MyLLMChatCompletionClient` is a model client of `autogen_core`: whatever takes one takes it (agents, teams,
contexts that count tokens, components in JSON). Its errors are `myllm.errors`'.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import myllm
from myllm import InvalidParameterError, UnsupportedFeatureError
from myllm.base import BaseClient
from myllm.dialects.tokenizers import SHAPING
from myllm.endpoints import PortSpec, UrlSpec
from myllm.wire import ServerInfo

from ._clients import CALL_OPTIONS, async_client, client_arguments, dump_client
from ._extra import missing_extra

try:
    from autogen_core import EVENT_LOGGER_NAME, CancellationToken, Component
    from autogen_core.logging import LLMCallEvent, LLMStreamEndEvent, LLMStreamStartEvent
    from autogen_core.models import (
        ChatCompletionClient,
        CreateResult,
        LLMMessage,
        ModelInfo,
        RequestUsage,
    )
    from autogen_core.tools import Tool, ToolSchema
    from pydantic import BaseModel, ConfigDict, SecretStr
except ImportError as exc:
    raise missing_extra(__name__, "pyautogen", exc) from exc

from ._agentchat.cancellation import Wait
from ._agentchat.requests import (
    ToolChoice,
    call_options,
    refuse_denied,
    refuse_misplaced,
    rows,
    tool_options,
)
from ._agentchat.results import abilities, added, create_result, request_usage

if TYPE_CHECKING:
    from autogen_core.models import ModelCapabilities

__all__ = ["MyLLMChatCompletionClient", "MyLLMChatCompletionClientConfig"]

_events = logging.getLogger(EVENT_LOGGER_NAME)

# AutoGen asks for abilities and token counts without awaiting: its event loop stands still meanwhile.
_QUESTION = myllm.Timeout(first_byte=30.0, idle=30.0, total=30.0)
_REQUIRED = ("vision", "function_calling", "json_output", "family", "structured_output")
_INSTEAD = "Make the component without its model client, and give it one after loading."


class MyLLMChatCompletionClientConfig(BaseModel):
    """What a component's JSON says of a `MyLLMChatCompletionClient`.

    Further fields are further arguments of the class. A dump has no `api_key`, headers, proxy and password:
    the key then comes from `MYLLM_API_KEY`.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str | None = None
    base_url: str | list[str] | None = None
    api_key: SecretStr | None = None
    model_info: dict[str, Any] | None = None
    add_name_prefixes: bool = False
    include_name_in_message: bool = True


class MyLLMChatCompletionClient(ChatCompletionClient, Component[MyLLMChatCompletionClientConfig]):
    """A model on servers of your own, as a model client of AutoGen.

    Args:
        model: the served model's name; None asks for the first one that the server serves.
        base_url: where the server is, with `/v1` or without, or a list of servers of the same model; also
            spelled `url`. Default: `MYLLM_BASE_URL`, then `OPENAI_BASE_URL`, then http://localhost:8000.
        port: instead of a port in the URL.
        api_key: the servers' key. Default: `MYLLM_API_KEY`.
        client: instead of all these, a `myllm.AsyncClient` or `myllm.Client`; the former is shared, and stays
            open when this client is closed.
        engine: instead of a server, an engine in this process, as `myllm.AsyncClient` takes it.
        model_info: what the model can do, where the server's word, or its silence, will not do: any of the
            fields of `autogen_core.models.ModelInfo`.
        add_name_prefixes: begin each user's message with "<source> said:", for models that do not see names.
        include_name_in_message: send a user's `source` as the message's `name`.
        **settings: as `myllm.AsyncClient` takes them (`timeout`, `max_retries`, `message_policy`, which is
            "auto" here, …), parameters of every call (`temperature=…`, `tool_choice="required"`, …),
            `extra_body` and `session`.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood.
        MissingExtraError: `engine=` without an engine installed.
    """

    component_type = "model"
    component_config_schema = MyLLMChatCompletionClientConfig
    component_provider_override = "myllm_adapters.agentchat.MyLLMChatCompletionClient"

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
        model_info: Mapping[str, Any] | None = None,
        add_name_prefixes: bool = False,
        include_name_in_message: bool = True,
        **settings: Any,
    ) -> None:
        if unknown := set(model_info or ()) - ModelInfo.__annotations__.keys():
            raise InvalidParameterError(
                f"`model_info` has no field {min(unknown)!r}; its fields are "
                f"{', '.join(ModelInfo.__annotations__)}.",
                param="model_info",
            )
        self._options = {name: settings.pop(name) for name in CALL_OPTIONS & settings.keys()}
        self._client = async_client(
            model, base_url, url=url, port=port, api_key=api_key, client=client, engine=engine, **settings
        )
        refuse_misplaced(self._client.defaults)
        self._owned = not isinstance(client, myllm.AsyncClient)
        self._stated = dict(model_info or {})
        self._names, self._prefixes = include_name_in_message, add_name_prefixes
        self._server: ServerInfo | None = None
        self._questions: myllm.Client | None = None
        self._actual_usage = self._total_usage = request_usage(None)

    @property
    def client(self) -> myllm.AsyncClient:
        """The SDK's client under it, for what AutoGen has no word for."""
        return self._client

    async def create(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> CreateResult:
        """Answer a conversation.

        Args:
            messages: the conversation.
            tools: what the model may call.
            tool_choice: "auto", "required", "none", or the tool to call.
            json_output: True for any JSON object, a pydantic model class for one of its objects; the server
                is held to it.
            extra_create_args: parameters (`myllm.params.Parameters`) and options (`timeout`, `extra_body`, …)
                of this call.
            cancellation_token: its cancelling closes the connection, and the server stops generating.

        Raises:
            UnknownParameterError, InvalidParameterError, UnsupportedFeatureError: nothing was sent.
            MyLLMError: the call failed; see `myllm.errors`.
            asyncio.CancelledError: the token was cancelled.
        """
        said, options = self._asked(messages, tools, tool_choice, json_output, extra_create_args)
        answer = await Wait(cancellation_token)(self._client.chat(said, **options))
        result = self._counted(create_result(answer))
        if _events.isEnabledFor(logging.INFO):
            _events.info(
                LLMCallEvent(
                    messages=said,
                    response=answer.model_dump(mode="json", exclude_none=True),
                    tools=options["tools"],
                    **_counts(result),
                )
            )
        return result

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: ToolChoice = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        """Answer a conversation piece by piece: the text as it comes, and the whole result last.

        Reasoning and calls are in the result alone. Closing the generator ends the generation. See `create`.
        """
        said, options = self._asked(messages, tools, tool_choice, json_output, extra_create_args)
        wait = Wait(cancellation_token)
        async with await wait(self._opened(said, options)) as stream:
            if _events.isEnabledFor(logging.INFO):
                _events.info(LLMStreamStartEvent(messages=said))
            while (chunk := await wait(_next(stream))) is not None:
                if text := chunk.text:
                    yield text
            answer = await stream.final()
        result = self._counted(create_result(answer))
        if _events.isEnabledFor(logging.INFO):
            _events.info(LLMStreamEndEvent(response=result.model_dump(mode="json"), **_counts(result)))
        yield result

    def _asked(
        self,
        messages: Sequence[LLMMessage],
        tools: Sequence[Tool | ToolSchema],
        tool_choice: ToolChoice,
        json_output: bool | type[BaseModel] | None,
        extra: Mapping[str, Any] | None,
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return a call's conversation and its options in the SDK's words."""
        said = rows(messages, names=self._names, prefixes=self._prefixes)
        refuse_denied(self._stated, messages, tools, json_output)
        return said, {**self._options, **call_options(tools, tool_choice, json_output, extra or {})}

    async def _opened(
        self, said: list[dict[str, Any]], options: dict[str, Any]
    ) -> myllm.AsyncStream[myllm.ChatChunk, myllm.ChatCompletion]:
        return await self._client.stream_chat(said, **options)

    def _counted(self, result: CreateResult) -> CreateResult:
        self._total_usage = added(self._total_usage, result.usage)
        if not result.cached:
            self._actual_usage = added(self._actual_usage, result.usage)
        return result

    def actual_usage(self) -> RequestUsage:
        """Return the tokens of all answers that a server generated."""
        return self._actual_usage

    def total_usage(self) -> RequestUsage:
        """Return the tokens of all answers, with those of answers that came from the client's cache."""
        return self._total_usage

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        """Return how many tokens a conversation is for the model, by the server's own tokenizer.

        The server is asked, and the event loop stands still meanwhile, for AutoGen does not await this.

        Raises:
            UnsupportedFeatureError: the server does not let its tokenizer be asked.
            MyLLMError: it could not be asked; see `myllm.errors`.
        """
        return self._tokens(messages, tools).count

    def remaining_tokens(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()
    ) -> int:
        """Return how many tokens a conversation leaves of the model's context; see `count_tokens`."""
        tokens = self._tokens(messages, tools)
        length = tokens.max_model_len or self._known().limits.get("max_model_len")
        if length is None:
            raise UnsupportedFeatureError("The server does not tell the length of the model's context.")
        return length - tokens.count

    def _tokens(self, messages: Sequence[LLMMessage], tools: Sequence[Tool | ToolSchema]) -> myllm.Tokens:
        if not messages:
            return myllm.Tokens(count=0)  # no template makes a prompt of nothing
        options = {name: value for name, value in self._client.defaults.items() if name in SHAPING}
        if tools:
            options["tools"] = tool_options(tools, "auto")["tools"]
        said = rows(messages, names=self._names, prefixes=self._prefixes)
        return self._asking().tokenize(said, timeout=_QUESTION, **options)

    @property
    def model_info(self) -> ModelInfo:
        """What the model can do: what was given, then what the server tells.

        The server is asked once, unless all was given; the event loop stands still meanwhile.

        Raises:
            MyLLMError: it could not be asked; see `myllm.errors`.
        """
        stated = self._stated
        if all(name in stated for name in _REQUIRED):
            return cast("ModelInfo", dict(stated))
        policy = self._client.__getstate__()["message_policy"]
        return cast("ModelInfo", {**abilities(self._known(), any_roles=policy != "as_is"), **stated})

    @property
    def capabilities(self) -> ModelCapabilities:
        """The old name of `model_info`."""
        return self.model_info

    def _known(self) -> ServerInfo:
        """Return what the server tells of itself; of several servers, the first that does."""
        if self._server is None:
            seen = [status.server for status in self._client.endpoints() if status.server is not None]
            self._server = seen[0] if seen else self._ask()
        return self._server

    def _ask(self) -> ServerInfo:
        answers = self._asking().server_info(timeout=_QUESTION).values()
        for answer in answers:
            if isinstance(answer, ServerInfo):
                return answer
        raise next(answer for answer in answers if isinstance(answer, myllm.MyLLMError))

    def _asking(self) -> myllm.Client:
        """Return a synchronous client with the same settings: AutoGen does not await its questions."""
        if self._questions is None:
            self._questions = myllm.Client(**{**self._client.__getstate__(), "health_interval": None})
        return self._questions

    async def close(self) -> None:
        """Close the connections, but for those of an `AsyncClient` that was given."""
        if self._questions is not None:
            await asyncio.to_thread(self._questions.close)
        if self._owned:
            await self._client.close()

    def _to_config(self) -> MyLLMChatCompletionClientConfig:
        """Return the client as JSON, without what is secret; see `MyLLMChatCompletionClientConfig`."""
        settings = dump_client(self._client, _INSTEAD)
        urls = settings.get("base_url", ())
        if len(urls) == 1:
            (settings["base_url"],) = urls
        return MyLLMChatCompletionClientConfig(
            model=self._client.model,
            model_info=self._stated or None,
            add_name_prefixes=self._prefixes,
            include_name_in_message=self._names,
            **self._options,
            **settings,
        )

    @classmethod
    def _from_config(cls, config: MyLLMChatCompletionClientConfig) -> MyLLMChatCompletionClient:
        arguments = client_arguments(config.model_dump(exclude_none=True, exclude={"api_key"}))
        key = None if config.api_key is None else config.api_key.get_secret_value()
        return cls(api_key=key, **arguments)


async def _next(stream: myllm.AsyncStream[myllm.ChatChunk, myllm.ChatCompletion]) -> myllm.ChatChunk | None:
    try:
        return await anext(stream)
    except StopAsyncIteration:
        return None


def _counts(result: CreateResult) -> dict[str, int]:
    usage = result.usage
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
