"""What AG2's agents send through our configuration, and how answers and faults come out, against a server that says what it saw."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from ag2 import (
    Agent,
    AudioInput,
    DataInput,
    DocumentInput,
    ImageInput,
    MemoryStream,
    ResponseSchema,
    VideoInput,
    tool,
)
from ag2.compact import CompactionSummary
from ag2.context import ConversationContext
from ag2.events import (
    ModelMessage,
    ModelMessageChunk,
    ModelReasoning,
    ModelRequest,
    ModelResponse,
    TextInput,
    ToolCallEvent,
    ToolCallsEvent,
    ToolResult,
    ToolResultEvent,
    ToolResultsEvent,
    Usage,
    UsageEvent,
)
from ag2.exceptions import UnsupportedInputError, UnsupportedToolError
from ag2.tools.builtin.web_search import WebSearchToolSchema
from ag2.tools.final.function_tool import FunctionDefinition, FunctionToolSchema
from fast_depends.pydantic import PydanticSerializer
from pydantic import BaseModel

import myllm
from myllm_adapters.ag2 import MyLLMConfig

# Connections that other tests left open are not ours to tell of.
pytestmark = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")

SENT = [{"role": "user", "content": "hi"}]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1},
    },
}  # fmt: skip
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}


def config(wire: Any, **arguments: Any) -> MyLLMConfig:
    return MyLLMConfig("m", wire.url, dialect="vllm", **arguments)


def agent(wire: Any, **arguments: Any) -> Agent:
    return Agent("agent", config=config(wire, **arguments))


async def told(wire: Any, *events: Any, tools: Any = (), prompt: Any = (), **arguments: Any) -> ModelResponse:
    """Call the client as AG2 does, with a conversation of one's own."""
    context = ConversationContext(stream=MemoryStream(), prompt=list(prompt))
    return await config(wire, **arguments).create()(
        events, context, tools=tools, response_schema=None, serializer=PydanticSerializer()
    )


def answered(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {**ANSWER, "choices": [choice]}


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def test_parameters_reach_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    reply = await agent(
        wire, api_key="secret", temperature=1.7, max_new_tokens=9, top_k=5, headers={"X-Team": "blue"},
        extra_body={"own": 1},
    ).ask("hi")  # fmt: skip
    assert reply.body == "ok"
    (seen,) = wire.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": "m", "messages": SENT, "temperature": 1.7, "max_tokens": 9, "top_k": 5, "own": 1,
    }  # fmt: skip
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["x-team"] == "blue"
    assert "secret" not in repr(config(wire, api_key="secret"))


async def test_the_prompt_is_one_system_message(wire: Any) -> None:
    wire.answers(ANSWER)
    await Agent("agent", prompt=["One.", "Two."], config=config(wire)).ask("hi")
    await Agent("agent", config=config(wire)).ask("hi", "there", {"a": 1})
    assert wire.bodies[0]["messages"] == [{"role": "system", "content": "One.\nTwo."}, *SENT]
    (message,) = wire.bodies[1]["messages"]
    assert message["content"] == [
        {"type": "text", "text": "hi"}, {"type": "text", "text": "there"}, {"type": "text", "text": '{"a":1}'},
    ]  # fmt: skip


async def test_a_tool_goes_there_and_back(wire: Any) -> None:
    wire.answers(answered({"content": None, "tool_calls": [CALL]}, "tool_calls"), answered({"content": "3"}))
    one = Agent("agent", config=config(wire), tools=[add])
    reply = await one.ask("1 + 2?")
    assert reply.body == "3"
    (described,) = wire.bodies[0]["tools"]
    assert described["function"]["name"] == "add"
    assert described["function"]["description"] == "Add two numbers."
    assert described["function"]["parameters"]["required"] == ["a", "b"]
    assert described["function"]["parameters"]["type"] == "object"
    assert "tool_choice" not in wire.bodies[0]
    assert wire.bodies[1]["messages"] == [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    assert (await reply.usage()).total == Usage(6, 8, 14, 4, None, 2)


async def test_a_broken_call_does_not_end_the_conversation(wire: Any) -> None:
    broken = {**CALL, "id": None, "function": {"name": "add", "arguments": '{"a": 1'}}
    wire.answers(answered({"content": None, "tool_calls": [broken]}, "length"), ANSWER)
    assert (await Agent("agent", config=config(wire), tools=[add]).ask("1 + 2?")).body == "ok"
    _, call, result = wire.bodies[1]["messages"]
    assert call["tool_calls"][0]["function"]["arguments"] == '{"unreadable": "{\\"a\\": 1"}'
    assert result["tool_call_id"] == call["tool_calls"][0]["id"]
    assert "JSONDecodeError" in result["content"]


async def test_a_conversation_reaches_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    data = base64.b64encode(b"data").decode()
    image = ImageInput(data=b"data", media_type="image/png")
    image.vendor_metadata = {"detail": "low"}
    await told(
        wire,
        CompactionSummary(summary="They greeted.", event_count=2),
        ModelRequest([ImageInput("https://h/i.png"), image, TextInput("What is it?")]),
        ModelResponse(ModelMessage("A cat."), tool_calls=ToolCallsEvent([ToolCallEvent("add", id="1", arguments="")])),
        ToolResultsEvent([
            ToolResultEvent(parent_id="1", name="add", result=ToolResult("one", {"two": 2})),
            ToolResultEvent(parent_id="2", name="add", result=ToolResult(3)),
        ]),
        UsageEvent(Usage(1, 2, 3)),
        ModelResponse(),
        ModelRequest([
            AudioInput(data=b"data", media_type="audio/wav"), AudioInput("https://h/a.ogg"),
            AudioInput(data=b"data", media_type="audio/ogg"), VideoInput("https://h/v.mp4"),
        ]),
        ModelRequest([DataInput({"a": [1]})]),
    )  # fmt: skip
    assert wire.bodies[0]["messages"] == [
        {"role": "user", "content": "[Summary of earlier conversation]\nThey greeted."},
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "https://h/i.png"}},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "low"}},
            {"type": "text", "text": "What is it?"},
        ]},
        {"role": "assistant", "content": "A cat.", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "1", "content": [
            {"type": "text", "text": "one"}, {"type": "text", "text": '{"two":2}'},
        ]},
        {"role": "tool", "tool_call_id": "2", "content": "3"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            {"type": "audio_url", "audio_url": {"url": "https://h/a.ogg"}},
            {"type": "audio_url", "audio_url": {"url": f"data:audio/ogg;base64,{data}"}},
            {"type": "video_url", "video_url": {"url": "https://h/v.mp4"}},
        ]},
        {"role": "user", "content": '{"a":[1]}'},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "part", [DocumentInput("https://h/d.pdf"), ImageInput(file_id="f-1"), DocumentInput(data=b"d", media_type="application/pdf")]
)  # fmt: skip
async def test_what_no_server_reads_is_refused(wire: Any, part: Any) -> None:
    with pytest.raises(UnsupportedInputError, match="for provider `myllm`"):
        await agent(wire).ask(part)
    assert wire.seen == []


@pytest.mark.parametrize(
    "schema",
    [WebSearchToolSchema(), FunctionToolSchema(function=FunctionDefinition("f"), defer_loading=True)],
)
async def test_tools_of_hosted_services_are_refused(wire: Any, schema: Any) -> None:
    with pytest.raises(UnsupportedToolError, match="for provider `myllm`"):
        await told(wire, ModelRequest([TextInput("hi")]), tools=[schema])
    assert wire.seen == []


async def test_a_choice_without_tools_is_taken_back(wire: Any) -> None:
    wire.answers(ANSWER)
    schema = FunctionToolSchema(function=FunctionDefinition("now"))
    hi = ModelRequest([TextInput("hi")])
    await told(wire, hi, tools=[schema], tool_choice="required", parallel_tool_calls=False)
    await told(wire, hi, tool_choice="required", parallel_tool_calls=False)
    now = {"name": "now", "parameters": {"type": "object", "properties": {}}}
    assert wire.bodies[0]["tools"] == [{"type": "function", "function": now}]
    assert (wire.bodies[0]["tool_choice"], wire.bodies[0]["parallel_tool_calls"]) == ("required", False)
    assert wire.bodies[1] == {"model": "m", "messages": SENT}


class Pair(BaseModel):
    """Two numbers."""

    a: int
    b: int


async def test_a_schema_reaches_the_wire(wire: Any) -> None:
    wire.handler = lambda seen, reply: reply.json(
        {"version": "0.13.0"} if seen.path == "/version" else answered({"content": '{"a": 1, "b": 2}'})
    )
    one = agent(wire)
    reply = await one.ask("hi", response_schema=Pair)
    assert await reply.content() == Pair(a=1, b=2)
    reply = await one.ask("hi", response_schema=ResponseSchema(Pair, name="numbers", description="Two."))
    assert await reply.content() == Pair(a=1, b=2)
    schemas = [
        b.get("structured_outputs", {}).get("json") or b["response_format"]["json_schema"]["schema"]
        for b in wire.bodies
        if b is not None
    ]
    assert [(s["title"], s["description"]) for s in schemas] == [
        ("Pair", "Two numbers."),
        ("numbers", "Two."),
    ]
    for schema in schemas:
        assert schema["additionalProperties"] is False
        assert schema["required"] == ["a", "b"]


async def test_what_the_model_thinks(wire: Any) -> None:
    wire.answers(answered({"content": "so", "reasoning_content": "hm"}))
    stream, thoughts = MemoryStream(), []
    stream.where(ModelReasoning).subscribe(lambda event: thoughts.append(event.content))
    reply = await agent(wire).ask("hi", stream=stream)
    assert (reply.body, thoughts) == ("so", ["hm"])
    await reply.ask("and?")
    assert wire.bodies[1]["messages"][1] == {"role": "assistant", "content": "so"}


async def test_a_stream_of_everything(wire: Any) -> None:
    deltas = [
        {"role": "assistant", "reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "I "},
        {"content": "add."},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]},
    ]
    chunks: list[Any] = [{"id": "1", "model": "m", "choices": [{"index": 0, "delta": d}]} for d in deltas]
    chunks.append({"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    chunks.append({"id": "1", "choices": [], "usage": ANSWER["usage"]})
    wire.streams(*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n")
    stream, seen = MemoryStream(), []
    stream.subscribe(lambda event: seen.append(event))
    context = ConversationContext(stream=stream)
    response = await config(wire, streaming=True).create()(
        [ModelRequest([TextInput("hi")])], context, tools=(), response_schema=None, serializer=PydanticSerializer()
    )  # fmt: skip
    assert seen == [
        ModelReasoning("h"), ModelReasoning("m"), ModelMessageChunk("I "), ModelMessageChunk("add."),
        ModelMessage("I add."),
    ]  # fmt: skip
    assert response.message == ModelMessage("I add.")
    (call,) = response.tool_calls.calls
    assert (call.id, call.name, call.arguments) == ("c1", "add", '{"a": 1}')
    assert response.usage == Usage(3, 4, 7, 2, None, 1)
    assert (response.model, response.finish_reason, response.response_id) == ("m", "tool_calls", "1")
    assert wire.bodies[0]["stream_options"] == {"include_usage": True}


async def test_roles_that_a_template_refuses_are_mended(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        if seen.body["messages"][0]["role"] == "user":
            reply.json(ANSWER)
        else:
            reply.json({"error": {"message": "System role not supported"}}, 400)

    wire.handler = handler
    reply = await Agent("agent", prompt="Be brief.", config=config(wire)).ask("hi")
    assert reply.body == "ok"
    assert wire.bodies[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nhi"}]


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, {"error": {"message": "no such thing"}}, myllm.BadRequestError, "no such thing"),
        (401, {"error": {"message": "bad key"}}, myllm.AuthenticationError, "MYLLM_API_KEY"),
        (429, {"error": {"message": "slow down"}}, myllm.RateLimitError, "slow down"),
        (503, {"error": {"message": "loading"}}, myllm.OverloadedError, "loading"),
    ],
)
async def test_statuses(wire: Any, status: int, body: Any, error: type[Exception], match: str) -> None:
    wire.handler = lambda seen, reply: reply.json(body, status, {"retry-after-ms": "1"})
    for streaming in (False, True):
        wire.seen.clear()
        with pytest.raises(error, match=match):
            await agent(wire, max_retries=1, streaming=streaming).ask("hi")
        assert len(wire.seen) == (2 if status in (429, 503) else 1)


async def test_no_server_and_no_answer(wire: Any, free_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(myllm.ConnectError, match=f"No server answers at .*:{free_port}.*myllm serve"):
        await Agent("agent", config=MyLLMConfig("m", port=free_port, max_retries=0)).ask("hi")
    wire.handler = lambda seen, reply: time.sleep(0.6)
    with pytest.raises(TimeoutError, match="was silent for 0.2 s"):
        await agent(wire, timeout=myllm.Timeout(first_byte=0.2)).ask("hi")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"temprature": 0.5}, "Did you mean `temperature`"),
        ({"n": 2}, "AG2 takes one answer to a call"),
        ({"logprobs": True}, "`logprobs=True`: AG2's answers have no place"),
        ({"top_n_tokens": 2}, "`logprobs=2`: AG2's answers have no place"),
        ({"tools": [CALL]}, "`tools` come with each call of AG2"),
        ({"url": "http://a", "base_url": "http://b"}, "the same thing"),
        ({"client": 5}, "must be a `myllm.AsyncClient`"),
    ],
)
def test_refused_settings(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(myllm.InvalidParameterError, match=match):
        MyLLMConfig("m", **arguments)
    if arguments.keys().isdisjoint({"url", "client"}):
        with pytest.raises(myllm.InvalidParameterError, match=match):
            MyLLMConfig("m").copy(**arguments)


async def test_copies_share_what_they_can(wire: Any, other_wire: Any) -> None:
    wire.answers(ANSWER)
    other_wire.answers(ANSWER)
    first = config(wire, temperature=0, extra_body={"own": 1}, streaming=False)
    second = first.copy(top_k=3, extra_body=None, timeout=9)
    third = second.copy(base_url=other_wire.url)
    assert second.client._transport is first.client._transport
    assert third.client._transport is not first.client._transport
    for one in (first, second, third):
        await Agent("agent", config=one).ask("hi")
    assert [body.get("own") for body in wire.bodies] == [1, None]
    assert [body.get("top_k") for body in (*wire.bodies, *other_wire.bodies)] == [None, 3, 3]
    assert third.client.timeout == second.client.timeout == myllm.Timeout.of(9)
    with pytest.raises(NotImplementedError, match="does not support Files API"):
        first.create_files_client()


async def test_a_client_that_is_given(wire: Any) -> None:
    wire.answers(ANSWER)
    async with myllm.AsyncClient(wire.url, model="m", dialect="vllm", temperature=0) as shared:
        given = MyLLMConfig(client=shared, top_k=3)
        await Agent("agent", config=given).ask("hi")
        await Agent("agent", config=given.copy(top_k=4)).ask("hi")
        assert given.model == "m"
        await given.close()
        assert (await shared.chat("hi")).text == "ok"
    assert [body.get("top_k") for body in wire.bodies] == [3, 4, None]
    assert MyLLMConfig(client=myllm.Client(wire.url)).model == ""
