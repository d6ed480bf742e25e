"""AutoGen's AgentChat: an agent, and the model client that agents ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_core import FunctionCall
from autogen_core.models import (
    AssistantMessage,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    SystemMessage,
    UserMessage,
)
from pydantic import BaseModel

import myllm
from myllm_adapters.agentchat import MyLLMChatCompletionClient

from .driver import Answer, Driver, Errors, Messages, ToolCall


class AgentChat(Driver):
    """It is asynchronous only."""

    name = page = "agentchat"
    errors = Errors(
        context=myllm.ContextLengthError,
        unknown=myllm.UnknownParameterError,
        refused=myllm.BadRequestError,
        unreachable=myllm.ConnectError,
        timeout=myllm.RequestTimeoutError,
    )

    def __init__(self, client: myllm.Client) -> None:
        self._client = client
        self._model = MyLLMChatCompletionClient(client=client)

    async def plain(self, prompt: str, **parameters: Any) -> Answer:
        model = MyLLMChatCompletionClient(client=self._client, **parameters)
        agent = AssistantAgent("agent", model, system_message=None)
        message = (await agent.run(task=prompt)).messages[-1]
        usage = message.models_usage
        return Answer([message.content], [], None, usage.prompt_tokens, usage.completion_tokens)

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] = (),
        schema: type[BaseModel] | None = None,
        tool_choice: Any = "auto",
        **parameters: Any,
    ) -> Answer:
        result = await self._model.create(
            _messages(messages),
            tools=[tool["function"] for tool in tools],
            tool_choice=tool_choice,
            json_output=schema,
            extra_create_args=parameters,
        )
        said = result.content
        return Answer(
            texts=[said if isinstance(said, str) else ""],
            calls=[] if isinstance(said, str) else [ToolCall(c.id, c.name, c.arguments) for c in said],
            logprobs=None if result.logprobs is None else [token.logprob for token in result.logprobs],
            prompt_tokens=result.usage.prompt_tokens,
            completion_tokens=result.usage.completion_tokens,
        )

    async def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        stream = self._model.create_stream(_messages(messages), extra_create_args=parameters)
        async with aclosing(stream):
            async for piece in stream:
                if not isinstance(piece, CreateResult):
                    yield piece


def _messages(messages: Messages) -> list[LLMMessage]:
    return [_message(message) for message in messages]


def _message(message: Mapping[str, Any]) -> LLMMessage:
    role, text = message["role"], message["content"]
    if role == "system":
        return SystemMessage(content=text)
    if role == "user":
        return UserMessage(content=text, source="user")
    if role == "tool":
        told = FunctionExecutionResult(content=text, name="", call_id=message["tool_call_id"])
        return FunctionExecutionResultMessage(content=[told])
    calls = [FunctionCall(id=call["id"], **call["function"]) for call in message.get("tool_calls", ())]
    return AssistantMessage(content=calls or text, source="agent")
