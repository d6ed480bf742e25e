"""AutoGen's AgentChat on the real engine, through our model client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Literal

import httpx
import pytest
from autogen_agentchat.agents import AssistantAgent, SocietyOfMindAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.messages import (
    HandoffMessage,
    ModelClientStreamingChunkEvent,
    MultiModalMessage,
    StructuredMessage,
    TextMessage,
    ToolCallExecutionEvent,
    ToolCallRequestEvent,
)
from autogen_agentchat.teams import RoundRobinGroupChat, SelectorGroupChat, Swarm
from autogen_core import CancellationToken, FunctionCall, Image
from autogen_core.memory import ListMemory, MemoryContent
from autogen_core.model_context import TokenLimitedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    ModelFamily,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from PIL import Image as PILImage
from pydantic import BaseModel

import myllm
from myllm_adapters.agentchat import MyLLMChatCompletionClient

# Connections that other tests left open are not ours to tell of.
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
ASK = [UserMessage(content=QUESTION, source="user")]


class Trip(BaseModel):
    """Where somebody goes."""

    city: Literal["Paris", "Rome"]
    nights: Literal[1, 2, 3]


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """Look the weather up."""
    return f"It is sunny in {city}."


WEATHER = FunctionTool(get_weather, description="Look the weather up.")
SPEAK = FunctionTool(lambda: "hello", description="Say hello.", name="speak")


@pytest.fixture(scope="module")
async def model(server: myllm.Server) -> AsyncIterator[MyLLMChatCompletionClient]:
    """A client with small answers that are always the same."""
    client = MyLLMChatCompletionClient("smollm2", port=server.port, temperature=0, max_tokens=20)
    yield client
    await client.close()


async def test_an_answer_and_its_tokens(server: myllm.Server) -> None:
    model = MyLLMChatCompletionClient("smollm2", f"{server.url}/v1", temperature=0, max_tokens=20)
    result = await model.create(ASK)
    assert (result.content, result.finish_reason, result.cached, result.thought) == (
        ANSWER, "stop", False, None,
    )  # fmt: skip
    cut = await model.create(ASK, extra_create_args={"max_new_tokens": 2})
    assert (cut.content, cut.finish_reason, cut.usage.completion_tokens) == ("The capital", "length", 2)
    assert cut.usage.prompt_tokens == result.usage.prompt_tokens > 10
    for usage in (model.actual_usage(), model.total_usage()):
        assert usage.prompt_tokens == 2 * result.usage.prompt_tokens
        assert usage.completion_tokens == result.usage.completion_tokens + 2
    await model.close()


async def test_a_stream_is_the_same_answer(model: MyLLMChatCompletionClient) -> None:
    whole = await model.create(ASK)
    *chunks, result = [part async for part in model.create_stream(ASK)]
    assert len(chunks) > 3
    assert "".join(chunks) == ANSWER
    assert result == whole


async def test_leaving_a_stream_early_ends_the_generation(
    server: myllm.Server, model: MyLLMChatCompletionClient
) -> None:
    endless = {"max_tokens": 2000, "ignore_eos": True}
    stream = model.create_stream(ASK, extra_create_args=endless)
    assert await anext(stream)
    await until_running(server, 1)
    await stream.aclose()
    await until_running(server, 0)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_token_ends_the_generation(
    server: myllm.Server, model: MyLLMChatCompletionClient, streamed: bool
) -> None:
    token = CancellationToken()
    endless = {"max_tokens": 2000, "ignore_eos": True}

    async def read() -> None:
        async for _ in model.create_stream(ASK, extra_create_args=endless, cancellation_token=token):
            pass

    create = model.create(ASK, extra_create_args=endless, cancellation_token=token)
    task = asyncio.create_task(read() if streamed else create)
    if streamed:
        create.close()
    await until_running(server, 1)
    token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_running(server, 0)
    with pytest.raises(asyncio.CancelledError):
        await model.create(ASK, cancellation_token=token)
    with pytest.raises(asyncio.CancelledError):
        await anext(model.create_stream(ASK, cancellation_token=token))


async def until_running(server: myllm.Server, wanted: int) -> None:
    """Wait until the engine has so many requests."""
    async with asyncio.timeout(10), httpx.AsyncClient(trust_env=False) as http:
        found = None
        while found != wanted:
            metrics = (await http.get(f"{server.url}/metrics")).text
            line = re.search(r"^vllm:num_requests_running\S* (\S+)$", metrics, re.MULTILINE)
            assert line is not None
            found = float(line[1])
            await asyncio.sleep(0.01)


async def test_the_quickstart(model: MyLLMChatCompletionClient) -> None:
    agent = AssistantAgent("assistant", model_client=model, system_message=None)
    result = await agent.run(task=QUESTION)
    assert [type(m) for m in result.messages] == [TextMessage, TextMessage]
    assert result.messages[-1].content == ANSWER
    assert result.messages[-1].models_usage is not None
    assert result.messages[-1].models_usage.completion_tokens > 5


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_uses_a_tool_and_reflects(server: myllm.Server, stream: bool) -> None:
    model = MyLLMChatCompletionClient(
        "smollm2", port=server.port, temperature=0, max_tokens=30, tool_choice="required",
        parallel_tool_calls=False,
    )  # fmt: skip
    agent = AssistantAgent(
        "assistant", model, tools=[WEATHER], reflect_on_tool_use=True, model_client_stream=stream
    )
    result = await agent.run(task="What is the weather in Rome?")
    (request,) = [m for m in result.messages if isinstance(m, ToolCallRequestEvent)]
    (executed,) = [m for m in result.messages if isinstance(m, ToolCallExecutionEvent)]
    city = json.loads(request.content[0].arguments)["city"]
    assert executed.content[0].content == f"It is sunny in {city}."
    assert executed.content[0].call_id == request.content[0].id
    assert isinstance(result.messages[-1], TextMessage)
    assert result.messages[-1].content
    await model.close()


async def test_an_agent_streams_what_it_says(model: MyLLMChatCompletionClient) -> None:
    agent = AssistantAgent("assistant", model, system_message=None, model_client_stream=True)
    events = [event async for event in agent.run_stream(task=QUESTION)]
    pieces = [e.content for e in events if isinstance(e, ModelClientStreamingChunkEvent)]
    assert len(pieces) > 3
    assert isinstance(events[-1], TaskResult)
    assert events[-1].messages[-1].content == "".join(pieces) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_answers_with_an_object(model: MyLLMChatCompletionClient, stream: bool) -> None:
    agent = AssistantAgent("assistant", model, output_content_type=Trip, model_client_stream=stream)
    result = await agent.run(task="Plan a trip.")
    message = result.messages[-1]
    assert isinstance(message, StructuredMessage)
    assert isinstance(message.content, Trip)


async def test_json_output(model: MyLLMChatCompletionClient) -> None:
    ask = [UserMessage(content="Name a colour, as JSON.", source="user")]
    loose = await model.create(ask, json_output=True, extra_create_args={"max_tokens": 60})
    assert str(loose.content).startswith("{")
    strict = await model.create(ask, json_output=Trip)
    assert json.loads(str(strict.content)).keys() == {"city", "nights"}
    strict_by_default = MyLLMChatCompletionClient(client=model.client, choice=["{}", "[]"])
    assert (await strict_by_default.create(ask)).content in ("{}", "[]")
    assert (await strict_by_default.create(ask, json_output=False)).content not in ("{}", "[]")


async def test_the_four_ways_to_choose_a_tool(model: MyLLMChatCompletionClient) -> None:
    tools = [WEATHER, SPEAK]
    named = await model.create(ASK, tools=tools, tool_choice=SPEAK)
    (call,) = named.content
    assert isinstance(call, FunctionCall)
    assert (call.name, json.loads(call.arguments), named.finish_reason) == ("speak", {}, "function_calls")
    one = {"parallel_tool_calls": False}
    required = await model.create(ASK, tools=tools, tool_choice="required", extra_create_args=one)
    assert isinstance(required.content[0], FunctionCall)
    assert required.content[0].name in ("get_weather", "speak")
    assert (await model.create(ASK, tools=tools, tool_choice="none")).content == ANSWER
    with pytest.raises(myllm.BadRequestError, match="--enable-auto-tool-choice"):
        await model.create(ASK, tools=tools, tool_choice="auto")


async def test_a_call_goes_back_with_its_result(model: MyLLMChatCompletionClient) -> None:
    call = (await model.create(ASK, tools=[WEATHER], tool_choice=WEATHER)).content
    assert isinstance(call, list)
    result = FunctionExecutionResult(content="Sunny.", name="get_weather", call_id=call[0].id, is_error=False)
    broken = FunctionCall(id="2", name="get_weather", arguments='{"city": "Pa')
    conversation = [
        SystemMessage(content="You are brief."),
        *ASK,
        AssistantMessage(content=[call[0], broken], source="assistant", thought="I look it up."),
        FunctionExecutionResultMessage(
            content=[
                result,
                FunctionExecutionResult(content="No JSON.", name="get_weather", call_id="2", is_error=True),
            ]
        ),
    ]
    assert (await model.create(conversation)).content


async def test_a_team_takes_turns(model: MyLLMChatCompletionClient) -> None:
    agents = [AssistantAgent(name, model, system_message="Be brief.") for name in ("anna", "ben")]
    team = RoundRobinGroupChat(agents, termination_condition=MaxMessageTermination(4))
    result = await team.run(task="Tell each other a story.")
    assert [m.source for m in result.messages] == ["user", "anna", "ben", "anna"]
    assert all(m.content for m in result.messages)


async def test_the_model_selects_the_next_speaker(model: MyLLMChatCompletionClient) -> None:
    agents = [AssistantAgent(name, model) for name in ("anna", "ben")]
    chooser = MyLLMChatCompletionClient(client=model.client, choice=["ben"])
    team = SelectorGroupChat(agents, chooser, termination_condition=MaxMessageTermination(2))
    result = await team.run(task="Hello!")
    assert [m.source for m in result.messages] == ["user", "ben"]


async def test_a_swarm_hands_over(model: MyLLMChatCompletionClient) -> None:
    pressed = MyLLMChatCompletionClient(
        client=model.client, tool_choice="required", parallel_tool_calls=False
    )
    anna = AssistantAgent("anna", pressed, handoffs=["ben"])
    team = Swarm([anna, AssistantAgent("ben", model)], termination_condition=MaxMessageTermination(3))
    result = await team.run(task=QUESTION)
    assert [m.source for m in result.messages if isinstance(m, HandoffMessage | TextMessage)] == [
        "user", "anna", "ben",
    ]  # fmt: skip


async def test_a_society_speaks_with_one_voice(model: MyLLMChatCompletionClient) -> None:
    inner = RoundRobinGroupChat(
        [AssistantAgent("anna", model)], termination_condition=MaxMessageTermination(2)
    )
    result = await SocietyOfMindAgent("society", inner, model).run(task=QUESTION)
    assert result.messages[-1].source == "society"
    assert result.messages[-1].content


async def test_an_agent_s_state_goes_on_in_another(model: MyLLMChatCompletionClient) -> None:
    first = AssistantAgent("assistant", model, system_message=None)
    await first.run(task=QUESTION)
    second = AssistantAgent("assistant", model, system_message=None)
    await second.load_state(json.loads(json.dumps(await first.save_state())))
    follow_up = "And of Spain?"
    assert [(await agent.run(task=follow_up)).messages[-1].content for agent in (first, second)] == [
        (
            await model.create(
                [
                    *ASK,
                    AssistantMessage(content=ANSWER, source="assistant"),
                    UserMessage(content=follow_up, source="user"),
                ]
            )
        ).content
    ] * 2


async def test_an_agent_has_a_memory(model: MyLLMChatCompletionClient) -> None:
    """AutoGen puts it into the conversation as a second system message, after the user's."""
    memory = ListMemory()
    await memory.add(MemoryContent(content="The user's name is Ada.", mime_type="text/plain"))
    agent = AssistantAgent("assistant", model, memory=[memory])
    result = await agent.run(task="What is my name?")
    assert isinstance(result.messages[-1], TextMessage)
    assert result.messages[-1].content


async def test_tokens_are_counted_as_the_server_counts_them(model: MyLLMChatCompletionClient) -> None:
    conversation = [SystemMessage(content="You are brief."), *ASK]
    count = model.count_tokens(conversation)
    assert count == (await model.create(conversation)).usage.prompt_tokens
    assert model.remaining_tokens(conversation) == 8192 - count
    assert model.count_tokens([]) == 0
    assert model.remaining_tokens([], tools=[WEATHER]) == 8192
    assert model.count_tokens(conversation, tools=[WEATHER]) >= count


async def test_a_context_keeps_within_a_number_of_tokens(model: MyLLMChatCompletionClient) -> None:
    context = TokenLimitedChatCompletionContext(model, token_limit=60)
    for number in range(6):
        await context.add_message(UserMessage(content=f"Number {number}. " * 4, source="user"))
    kept = await context.get_messages()
    assert 0 < len(kept) < 6
    assert model.count_tokens(kept) <= 60


async def test_many_at_once(model: MyLLMChatCompletionClient) -> None:
    before = model.total_usage().completion_tokens
    few = {"max_tokens": 4, "ignore_eos": True}
    questions = [[UserMessage(content=f"Say {number}.", source="user")] for number in range(32)]
    results = await asyncio.gather(*(model.create(q, extra_create_args=few) for q in questions))
    assert all(isinstance(result, CreateResult) and result.content for result in results)
    assert model.total_usage().completion_tokens == before + 32 * 4


def test_several_event_loops(model: MyLLMChatCompletionClient) -> None:
    for _ in range(2):
        assert asyncio.run(_once(model)) == ANSWER


async def _once(model: MyLLMChatCompletionClient) -> Any:
    result = await model.create(ASK)
    await model.client.close()  # this loop's connections
    return result.content


async def test_logprobs(model: MyLLMChatCompletionClient) -> None:
    wanted = {"logprobs": True, "top_logprobs": 2}
    result = await model.create(ASK, extra_create_args=wanted)
    assert result.logprobs is not None
    assert "".join(token.token for token in result.logprobs).startswith(ANSWER)
    for token in result.logprobs:
        assert token.logprob <= 0
        assert token.top_logprobs is not None
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
        assert bytes(token.bytes or ()).decode() == token.token
    *_, streamed = [part async for part in model.create_stream(ASK, extra_create_args=wanted)]
    assert isinstance(streamed, CreateResult)
    assert streamed.logprobs == result.logprobs


async def test_what_the_model_can_do(model: MyLLMChatCompletionClient) -> None:
    assert model.model_info == {
        "vision": True,  # the server does not tell
        "function_calling": True,
        "json_output": True,
        "structured_output": True,
        "family": ModelFamily.UNKNOWN,
        "multiple_system_messages": True,
    }
    assert model.capabilities == model.model_info
    blind = MyLLMChatCompletionClient(client=model.client, model_info={"vision": False, "family": "smollm"})
    assert blind.model_info == {**model.model_info, "vision": False, "family": "smollm"}


async def test_images_for_a_model_that_sees_none(model: MyLLMChatCompletionClient) -> None:
    picture = Image(PILImage.new("RGB", (4, 4)))
    message = MultiModalMessage(content=["What is this?", picture], source="user")
    with pytest.raises(myllm.BadRequestError, match="reads text alone, and the message holds an image"):
        await AssistantAgent("assistant", model).run(task=message)
    blind = MyLLMChatCompletionClient(client=model.client, model_info={"vision": False})
    agent = AssistantAgent("assistant", blind)  # AutoGen leaves images out for such a model
    assert (await agent.run(task=message)).messages[-1].content
    with pytest.raises(myllm.UnsupportedFeatureError, match="needs `vision`, which `model_info` denies"):
        await blind.create([message.to_model_message()])


async def test_dumped_and_loaded(server: myllm.Server, model: MyLLMChatCompletionClient) -> None:
    dumped = json.loads(model.dump_component().model_dump_json())
    assert dumped["provider"] == "myllm_adapters.agentchat.MyLLMChatCompletionClient"
    assert dumped["component_type"] == "model"
    assert dumped["config"] == {
        "model": "smollm2",
        "base_url": f"http://localhost:{server.port}",
        "add_name_prefixes": False,
        "include_name_in_message": True,
        "dialect": "auto",
        "max_retries": 2,
        "message_policy": "auto",
        "temperature": 0,
        "max_tokens": 20,
    }
    loaded = ChatCompletionClient.load_component(dumped)
    assert isinstance(loaded, MyLLMChatCompletionClient)
    assert (await loaded.create(ASK)).content == ANSWER
    assert loaded.dump_component() == model.dump_component()
    await loaded.close()


async def test_an_agent_and_a_team_dumped_and_loaded(model: MyLLMChatCompletionClient) -> None:
    team = RoundRobinGroupChat(
        [AssistantAgent("assistant", model, system_message=None)],
        termination_condition=MaxMessageTermination(2),
    )
    loaded = RoundRobinGroupChat.load_component(json.loads(team.dump_component().model_dump_json()))
    assert (await loaded.run(task=QUESTION)).messages[-1].content == ANSWER


async def test_an_engine_in_this_process(local_engine: Any) -> None:
    model = MyLLMChatCompletionClient("smollm2", engine=local_engine, temperature=0, max_tokens=20)
    assert (await model.create(ASK)).content == ANSWER
    *_, streamed = [part async for part in model.create_stream(ASK)]
    assert isinstance(streamed, CreateResult)
    assert streamed.content == ANSWER
    assert model.count_tokens(ASK) == streamed.usage.prompt_tokens
    assert model.model_info["function_calling"]
    agent = AssistantAgent("assistant", model, system_message=None)
    assert (await agent.run(task=QUESTION)).messages[-1].content == ANSWER
    with pytest.raises(myllm.InvalidParameterError, match="lives in this process and cannot be saved"):
        agent.dump_component()
    await model.close()


async def test_the_server_s_refusals(model: MyLLMChatCompletionClient) -> None:
    with pytest.raises(myllm.ContextLengthError):
        await model.create([UserMessage(content="word " * 9000, source="user")])
    with pytest.raises(myllm.NotFoundError, match="This server serves: smollm2"):
        await model.create(ASK, extra_create_args={"model": "other"})
    agent = AssistantAgent("assistant", MyLLMChatCompletionClient(client=model.client, model="other"))
    with pytest.raises(myllm.NotFoundError, match="'other' does not exist here"):
        await agent.run(task="Hello")
