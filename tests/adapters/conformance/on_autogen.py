"""AutoGen's classic API: an agent, and the `OpenAIWrapper` that agents ask with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import openai
from autogen import ConversableAgent, OpenAIWrapper
from autogen.events.client_events import StreamEvent
from autogen.io.base import IOStream
from pydantic import BaseModel

import myllm
from myllm_adapters.autogen import config_list, llm_config

from .driver import Answer, Driver, Errors, Messages, Threads, ToolCall, handed


class AutoGen(Driver):
    """It is synchronous: agents' asynchronous replies run in threads too."""

    name = page = "autogen"
    is_async = False
    errors = Errors(
        context=openai.BadRequestError,
        unknown=myllm.UnknownParameterError,
        refused=openai.BadRequestError,
        unreachable=openai.APIConnectionError,
        timeout=TimeoutError,
    )

    def __init__(self, client: myllm.Client) -> None:
        self._client = client
        self._threads = Threads()

    async def plain(self, prompt: str, **parameters: Any) -> Answer:
        config = llm_config(self._client, **parameters)
        agent = ConversableAgent("agent", llm_config=config, human_input_mode="NEVER", system_message="")
        reply = await self._threads.run(agent.generate_reply, [{"role": "user", "content": prompt}])
        usage = next(value for value in agent.get_actual_usage().values() if isinstance(value, dict))
        return Answer(
            [reply], prompt_tokens=usage["prompt_tokens"], completion_tokens=usage["completion_tokens"]
        )

    async def ask(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] = (),
        schema: type[BaseModel] | None = None,
        **parameters: Any,
    ) -> Answer:
        more: dict[str, Any] = {"tools": list(tools)} if tools else {}
        if schema is not None:
            more["response_format"] = schema
        wrapper = OpenAIWrapper(config_list=config_list(self._client, **parameters))
        response = await self._threads.run(wrapper.create, messages=list(messages), **more)
        first = response.choices[0]
        return Answer(
            texts=[choice.message.content or "" for choice in response.choices],
            calls=[
                ToolCall(call.id, call.function.name, call.function.arguments)
                for call in first.message.tool_calls or ()
            ],
            logprobs=None if first.logprobs is None else [token.logprob for token in first.logprobs.content],
            prompt_tokens=response.usage.prompt_tokens,
            completion_tokens=response.usage.completion_tokens,
        )

    def stream(self, messages: Messages, **parameters: Any) -> AsyncIterator[str]:
        wrapper = OpenAIWrapper(config_list=config_list(self._client, stream=True, **parameters))
        loop = asyncio.get_running_loop()

        def create(hand: Callable[[str], None]) -> None:
            with IOStream.set_default(Output(lambda piece: loop.call_soon_threadsafe(hand, piece))):
                wrapper.create(messages=list(messages))

        return handed(lambda hand: self._threads.run(create, hand))


class Output(IOStream):
    """Where AutoGen writes what is streamed."""

    def __init__(self, hand: Callable[[str], object]) -> None:
        self._hand = hand

    def send(self, message: Any) -> None:
        if isinstance(message, StreamEvent):
            self._hand(message.content.content)

    def print(self, *objects: Any, sep: str = " ", end: str = "\n", flush: bool = False) -> None:
        """Nothing is printed here."""

    def input(self, prompt: str = "", *, password: bool = False) -> str:
        raise EOFError
