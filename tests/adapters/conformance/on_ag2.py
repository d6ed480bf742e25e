"""AG2 1.x: an agent, and the client that a model's configuration makes for each of its turns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ag2 import Agent, MemoryStream
from ag2.context import ConversationContext
from ag2.events import (
    BaseEvent,
    ModelMessage,
    ModelMessageChunk,
    ModelRequest,
    ModelResponse,
    ToolCallEvent,
    ToolCallsEvent,
    ToolResultEvent,
    ToolResultsEvent,
)
from ag2.response import ResponseSchema
from ag2.tools.final import FunctionToolSchema
from pydantic import BaseModel

import myllm
from myllm_adapters.ag2 import MyLLMConfig

from .driver import Answer, Driver, Errors, Messages, ToolCall, handed


class AG2(Driver):
    """It is asynchronous only."""

    name = page = "ag2"
    errors = Errors(
        context=myllm.ContextLengthError,
        unknown=myllm.UnknownParameterError,
        refused=myllm.BadRequestError,
        unreachable=myllm.ConnectError,
        timeout=myllm.RequestTimeoutError,
    )

    def __init__(self, client: myllm.Client) -> None:
        self._config = MyLLMConfig(client=client)

    async def plain(self, prompt: str, **parameters: Any) -> Answer:
        reply = await Agent("agent", config=self._config.copy(**parameters)).ask(prompt)
        return _answer(reply.response)

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] = (),
        schema: type[BaseModel] | None = None,
        **parameters: Any,
    ) -> Answer:
        config = self._config.copy(**parameters)
        form = None if schema is None else ResponseSchema(schema)
        return _answer(await _turn(config, messages, MemoryStream(), tools, form))

    def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        config = self._config.copy(streaming=True, **parameters)

        async def read(hand: Callable[[str], None]) -> None:
            stream = MemoryStream()

            @stream.where(ModelMessageChunk).subscribe
            async def _(event: ModelMessageChunk) -> None:
                hand(event.content)

            await _turn(config, messages, stream)

        return handed(read)


async def _turn(
    config: MyLLMConfig,
    messages: Messages,
    stream: MemoryStream,
    tools: Sequence[Any] = (),
    schema: Any = None,
) -> ModelResponse:
    """Return a model's turn after a conversation, as an agent gets it."""
    prompt = [message["content"] for message in messages if message["role"] == "system"]
    return await config.create()(
        _events(messages),
        ConversationContext(stream=stream, prompt=prompt),
        tools=[FunctionToolSchema.from_dict(tool) for tool in tools],
        response_schema=schema,
        serializer=Agent("agent").serializer,
    )


def _events(messages: Messages) -> list[BaseEvent]:
    events: list[BaseEvent] = []
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "user":
            events.append(ModelRequest.ensure_request([text]))
        elif role == "assistant":
            calls = [
                ToolCallEvent(id=call["id"], **call["function"]) for call in message.get("tool_calls", ())
            ]
            events.append(ModelResponse(ModelMessage(text), tool_calls=ToolCallsEvent(calls)))
        elif role == "tool":
            call = ToolCallEvent(id=message["tool_call_id"], name="")
            events.append(ToolResultsEvent([ToolResultEvent.from_call(call, text)]))
    return events


def _answer(response: ModelResponse) -> Answer:
    return Answer(
        texts=[response.content or ""],
        calls=[ToolCall(call.id, call.name, call.arguments) for call in response.tool_calls.calls],
        prompt_tokens=int(response.usage.prompt_tokens or 0),
        completion_tokens=int(response.usage.completion_tokens or 0),
    )
