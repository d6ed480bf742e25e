"""Agents whose model decides by itself to call a tool, on the real engine: the whole way there and back.

The bundled model repeats what it is told to, and so begins a call of its own accord; the call's rest is the
model's, under the tool's schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import pytest
from ag2 import Agent, MemoryStream, tool
from ag2.events import ModelResponse
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.messages import ThoughtEvent, ToolCallExecutionEvent, ToolCallRequestEvent

import myllm
from myllm_adapters.ag2 import MyLLMConfig
from myllm_adapters.agentchat import MyLLMChatCompletionClient

# Connections that other tests left open are not ours to tell of.
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

BEGIN = "Repeat after me, exactly: <tool_call>"
RESULT = "Thank you. Now say: done."


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Look the weather up."""
    return RESULT


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that lets the model choose."""
    args = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with myllm.Server("smollm2", args=args) as server:
        yield server.port


@pytest.mark.parametrize("stream", [False, True])
async def test_agentchat(port: int, stream: bool) -> None:
    model = MyLLMChatCompletionClient("smollm2", port=port, temperature=0, max_tokens=40)
    agent = AssistantAgent(
        "assistant", model, tools=[get_weather], system_message=None, max_tool_iterations=3,
        model_client_stream=stream,
    )  # fmt: skip
    messages = (await agent.run(task=BEGIN)).messages
    (thought,) = [m.content for m in messages if isinstance(m, ThoughtEvent)]
    (request,) = [m for m in messages if isinstance(m, ToolCallRequestEvent)]
    (executed,) = [m for m in messages if isinstance(m, ToolCallExecutionEvent)]
    assert thought.strip() == "Repeat after me, exactly:"  # what was said beside the call
    assert json.loads(request.content[0].arguments)["city"] in ("Paris", "Rome")
    assert executed.content[0].content == RESULT
    assert "done" in messages[-1].content
    await model.close()


@pytest.mark.parametrize("streaming", [False, True])
async def test_ag2(port: int, streaming: bool) -> None:
    config = MyLLMConfig("smollm2", port=port, temperature=0, max_tokens=40, streaming=streaming)
    stream, responses = MemoryStream(), []
    stream.where(ModelResponse).subscribe(lambda event: responses.append(event))
    reply = await Agent("assistant", config=config, tools=[tool(get_weather)]).ask(BEGIN, stream=stream)
    first, last = responses
    (call,) = first.tool_calls.calls
    assert call.serialized_arguments["city"] in ("Paris", "Rome")
    assert (first.finish_reason, last.finish_reason) == ("tool_calls", "stop")
    assert "done" in str(reply.body)
    follow_up = await reply.ask("Thanks!")  # the call and its result are part of the conversation
    assert follow_up.response.usage.prompt_tokens > last.usage.prompt_tokens
    await config.close()
