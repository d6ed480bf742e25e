"""AG2's agents on the real engine, through our model configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from ag2 import Agent, ImageInput, MemoryStream, PromptedSchema, ToolResult, tool
from ag2.config import ModelProvider
from ag2.events import ModelMessage, ModelMessageChunk
from pydantic import BaseModel

import myllm
from myllm_adapters.ag2 import MyLLMConfig

# Connections that other tests left open are not ours to tell of.
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."


class Trip(BaseModel):
    """Where somebody goes."""

    city: Literal["Paris", "Rome"]
    nights: Literal[1, 2, 3]


@pytest.fixture(scope="module")
async def config(server: myllm.Server) -> AsyncIterator[MyLLMConfig]:
    """A configuration with small answers that are always the same."""
    config = MyLLMConfig("smollm2", port=server.port, temperature=0, max_tokens=20)
    yield config
    await config.close()


async def test_the_quickstart(config: MyLLMConfig) -> None:
    agent = Agent("assistant", config=config)
    reply = await agent.ask(QUESTION)
    assert reply.body == ANSWER
    usage = (await reply.usage()).total
    assert usage.prompt_tokens > 10
    assert usage.completion_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    response = reply.response
    assert (response.model, response.provider, response.finish_reason) == ("smollm2", "openai", "stop")
    assert response.response_id.startswith("chatcmpl-")
    assert (config.model, config.provider) == ("smollm2", ModelProvider.OPENAI)


async def test_a_conversation_of_two_turns(config: MyLLMConfig) -> None:
    first = await Agent("assistant", prompt="You are brief.", config=config).ask(QUESTION)
    second = await first.ask("And of Spain?")
    said = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.body},
        {"role": "user", "content": "And of Spain?"},
    ]
    assert second.body == (await config.client.chat(said)).text


async def test_a_tool_is_called_under_its_schema(config: MyLLMConfig) -> None:
    called: list[str] = []

    @tool
    def get_weather(city: Literal["Paris", "Rome"]) -> ToolResult:
        """Look the weather up."""
        called.append(city)
        return ToolResult(f"It is sunny in {city}.", final=True)

    pressed = config.copy(tool_choice="required", parallel_tool_calls=False)
    agent = Agent("assistant", config=pressed, tools=[get_weather])
    reply = await agent.ask("What is the weather in Rome?")
    (city,) = called
    assert reply.body == f"It is sunny in {city}."


@pytest.mark.parametrize("streaming", [False, True])
async def test_an_object_is_answered(config: MyLLMConfig, streaming: bool) -> None:
    agent = Agent("assistant", config=config.copy(streaming=streaming), response_schema=Trip)
    assert isinstance(await (await agent.ask("Plan a trip.")).content(), Trip)
    number = await agent.ask("How many nights?", response_schema=Literal[1, 2])
    assert await number.content() in (1, 2)


async def test_a_schema_in_the_prompt(config: MyLLMConfig) -> None:
    agent = Agent("assistant", config=config, response_schema=PromptedSchema(Trip))
    plain = await Agent("assistant", config=config).ask("Plan a trip.")
    told = await agent.ask("Plan a trip.")
    assert (await told.usage()).total.prompt_tokens > (await plain.usage()).total.prompt_tokens + 50


async def test_a_stream_comes_as_events(config: MyLLMConfig) -> None:
    stream, pieces, messages = MemoryStream(), [], []
    stream.where(ModelMessageChunk).subscribe(lambda event: pieces.append(event.content))
    stream.where(ModelMessage).subscribe(lambda event: messages.append(event.content))
    agent = Agent("assistant", config=config.copy(streaming=True))
    reply = await agent.ask(QUESTION, stream=stream)
    assert len(pieces) > 3
    assert "".join(pieces) == reply.body == ANSWER
    assert messages == [ANSWER]
    assert (await reply.usage()).total.completion_tokens > 5


async def test_leaving_a_turn_ends_it(config: MyLLMConfig) -> None:
    stream, begun = MemoryStream(), asyncio.Event()

    @stream.where(ModelMessageChunk).subscribe
    async def began(event: ModelMessageChunk) -> None:
        begun.set()

    endless = config.copy(streaming=True, max_tokens=2000, ignore_eos=True)
    turn = asyncio.create_task(Agent("assistant", config=endless).ask(QUESTION, stream=stream))
    await begun.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    async with asyncio.timeout(5):  # the engine is free again
        assert (await Agent("assistant", config=config).ask(QUESTION)).body == ANSWER


async def test_many_at_once(config: MyLLMConfig) -> None:
    agent = Agent("assistant", config=config.copy(max_tokens=4, ignore_eos=True))
    replies = await asyncio.gather(*(agent.ask(f"Say {number}.") for number in range(32)))
    assert all(reply.body for reply in replies)
    assert {reply.response.usage.completion_tokens for reply in replies} == {4}


async def test_copies(config: MyLLMConfig, server: myllm.Server, free_port: int) -> None:
    short = config.copy(max_tokens=2)
    assert (await Agent("assistant", config=short).ask(QUESTION)).body == "The capital"
    assert (await Agent("assistant", config=short.copy(max_tokens=None)).ask(QUESTION)).body == ANSWER
    assert (await Agent("assistant", config=config).ask(QUESTION)).body == ANSWER
    elsewhere = config.copy(port=free_port, max_retries=0)
    with pytest.raises(myllm.ConnectError):
        await Agent("assistant", config=elsewhere).ask(QUESTION)
    back = elsewhere.copy(port=server.port, max_tokens=2)
    assert (await Agent("assistant", config=back).ask(QUESTION)).body == "The capital"
    other = config.copy(model="other")
    assert other.model == "other"
    with pytest.raises(myllm.NotFoundError, match="This server serves: smollm2"):
        await Agent("assistant", config=other).ask(QUESTION)


async def test_the_engine_s_own_parameters(config: MyLLMConfig) -> None:
    chosen = config.copy(choice=["blue", "red"])
    assert (await Agent("assistant", config=chosen).ask("A colour?")).body in ("blue", "red")


async def test_an_engine_in_this_process(local_engine: Any) -> None:
    config = MyLLMConfig("smollm2", engine=local_engine, temperature=0, max_tokens=20)
    for one in (config, config.copy(streaming=True)):
        assert (await Agent("assistant", config=one).ask(QUESTION)).body == ANSWER
    await config.close()


async def test_images_for_a_model_that_sees_none(config: MyLLMConfig) -> None:
    picture = ImageInput(data=b"\x89PNG", media_type="image/png")
    with pytest.raises(myllm.BadRequestError, match="reads text alone, and the message holds an image"):
        await Agent("assistant", config=config).ask("What is this?", picture)
