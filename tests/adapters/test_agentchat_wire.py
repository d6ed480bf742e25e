"""What AgentChat's model client sends, and how answers and faults come out, against a server that says what it saw."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
import time
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core import EVENT_LOGGER_NAME, CancellationToken, FunctionCall, Image
from autogen_core.logging import LLMCallEvent, LLMStreamEndEvent, LLMStreamStartEvent
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    RequestUsage,
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

M = [UserMessage(content="hi", source="user")]
SENT = [{"role": "user", "content": "hi", "name": "user"}]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


def add(a: int, b: int = 0) -> int:
    """Add."""
    return a + b


ADD = FunctionTool(add, description="Add two numbers.")
ADD_SENT = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"description": "a", "title": "A", "type": "integer"},
                "b": {"default": 0, "description": "b", "title": "B", "type": "integer"},
            },
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}


def client(wire: Any, **arguments: Any) -> MyLLMChatCompletionClient:
    return MyLLMChatCompletionClient("m", wire.url, dialect="vllm", **arguments)


def answered(message: dict[str, Any], finish: str = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **more}
    return {**ANSWER, "choices": [choice]}


def events(*deltas: dict[str, Any], finish: str = "stop", usage: Any = ANSWER["usage"]) -> list[str]:
    """Return the events of a stream."""
    chunks = [
        {"id": "1", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    chunks.append({"id": "1", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    chunks.append({"id": "1", "model": "m", "choices": [], "usage": usage})
    return [*(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "data: [DONE]\n\n"]


async def test_parameters_reach_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    model = client(
        wire, api_key="secret", temperature=1.7, max_new_tokens=9, top_k=5, headers={"X-Team": "blue"},
        extra_body={"own": 1},
    )  # fmt: skip
    await model.create(M, extra_create_args={"min_p": 0.1, "temperature": 0, "stop": "x"})
    await model.create(M, extra_create_args={"top_k": None, "extra_body": {"other": 2}})
    (seen, _), (first, second) = wire.seen, wire.bodies
    assert seen.path == "/v1/chat/completions"
    assert first == {
        "model": "m", "messages": SENT, "temperature": 0, "max_tokens": 9, "top_k": 5, "min_p": 0.1,
        "stop": ["x"], "own": 1,
    }  # fmt: skip
    assert second == {"model": "m", "messages": SENT, "temperature": 1.7, "max_tokens": 9, "other": 2}
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["x-team"] == "blue"


async def test_a_conversation_reaches_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    picture = Image(PILImage.new("RGB", (1, 1)))
    call = FunctionCall(id="c1", name="add", arguments='{"a": 1}')
    conversation = [
        SystemMessage(content="Be brief."),
        UserMessage(content="hi", source="anna"),
        UserMessage(content=["see", picture], source="ben"),
        UserMessage(content=[picture], source="ben"),
        UserMessage(content=["one text"], source="ben"),
        AssistantMessage(content="yes", source="assistant", thought="hm"),
        AssistantMessage(content=[call], source="assistant", thought="I add."),
        AssistantMessage(
            content=[FunctionCall(id="c2", name="add", arguments='{"a": '), FunctionCall("c3", "", "now")],
            source="assistant",
        ),
        FunctionExecutionResultMessage(
            content=[
                FunctionExecutionResult(content="1", name="add", call_id="c1"),
                FunctionExecutionResult(content="no", name="add", call_id="c2", is_error=True),
            ]
        ),
    ]
    await client(wire).create(conversation)
    await client(wire, add_name_prefixes=True, include_name_in_message=False).create(conversation[1:4])
    seen = {"type": "image_url", "image_url": {"url": picture.data_uri}}
    assert picture.data_uri.startswith("data:image/png;base64,")
    assert wire.bodies[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi", "name": "anna"},
        {"role": "user", "content": [{"type": "text", "text": "see"}, seen], "name": "ben"},
        {"role": "user", "content": [seen], "name": "ben"},
        {"role": "user", "content": "one text", "name": "ben"},
        {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        {"role": "assistant", "content": "I add.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c2", "type": "function",
             "function": {"name": "add", "arguments": '{"unreadable": "{\\"a\\": "}'}},
            {"id": "c3", "type": "function", "function": {"name": "now", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "no"},
    ]  # fmt: skip
    assert wire.bodies[1]["messages"] == [
        {"role": "user", "content": "anna said:\nhi"},
        {"role": "user", "content": [{"type": "text", "text": "ben said:\nsee"}, seen]},
        {"role": "user", "content": [{"type": "text", "text": "ben said:\n"}, seen]},
    ]


async def test_roles_that_a_template_refuses_are_mended(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        if [m["role"] for m in seen.body["messages"]] == ["user"]:
            reply.json(ANSWER)
        else:
            reply.json({"error": {"message": "Conversation roles must alternate user/assistant/..."}}, 400)

    wire.handler = handler
    team = [SystemMessage(content="Be brief."), *M, UserMessage(content="ho", source="ben")]
    assert (await client(wire).create(team)).content == "ok"
    (message,) = wire.bodies[-1]["messages"]
    assert message["content"] == "Be brief.\n\nuser: hi\n\nben: ho"
    wire.handler = handler
    with pytest.raises(myllm.BadRequestError, match="must alternate"):
        await client(wire, message_policy="as_is").create(team)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", {}),
        ("required", {"tool_choice": "required"}),
        ("none", {"tool_choice": "none"}),
        (ADD, {"tool_choice": {"type": "function", "function": {"name": "add"}}}),
    ],
)
async def test_tools_reach_the_wire(wire: Any, choice: Any, sent: dict[str, Any]) -> None:
    wire.answers(ANSWER)
    await client(wire).create(M, tools=[ADD, {"name": "now", "strict": True}], tool_choice=choice)
    (body,) = wire.bodies
    now = {"name": "now", "parameters": {"type": "object", "properties": {}}, "strict": True}
    assert body == {
        "model": "m", "messages": SENT, "tools": [ADD_SENT, {"type": "function", "function": now}], **sent,
    }  # fmt: skip


async def test_the_client_s_own_choice_holds_where_a_call_makes_none(wire: Any) -> None:
    wire.answers(ANSWER)
    model = client(wire, tool_choice="required", parallel_tool_calls=False)
    await model.create(M, tools=[ADD])
    await model.create(M, tools=[ADD], tool_choice="none")
    await model.create(M)
    assert [body.get("tool_choice") for body in wire.bodies] == ["required", "none", None]
    assert "parallel_tool_calls" not in wire.bodies[2]


class Inner(BaseModel):
    """Named, so that the schema refers to it."""

    word: str


class Outer(BaseModel):
    """An object with all kinds of others in it."""

    inner: Inner
    several: list[Inner] = []
    either: Inner | None = None
    free: dict[str, int] = {}
    properties: Inner | None = None


async def test_shapes_reach_the_wire(wire: Any) -> None:
    wire.answers(answered({"content": '{"inner": {"word": "x"}}'}))
    model = client(wire)
    await model.create(M, json_output=True)
    await model.create(M, json_output=Outer)
    await model.create(M, extra_create_args={"json_schema": Outer})
    first, second, third = wire.bodies[0], wire.bodies[-2], wire.bodies[-1]
    assert first["response_format"] == {"type": "json_object"}
    schema = (second.get("structured_outputs") or {}).get("json") or second["response_format"]["json_schema"][
        "schema"
    ]
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Inner"]["additionalProperties"] is False
    assert schema["properties"]["free"]["additionalProperties"] == {"type": "integer"}
    assert schema["properties"].keys() == Outer.model_fields.keys()
    # Given as it is, it is sent as it is.
    assert Outer.model_json_schema() in (
        third.get("structured_outputs", {}).get("json"),
        third.get("response_format", {}).get("json_schema", {}).get("schema"),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"extra_create_args": {"temprature": 1}}, myllm.UnknownParameterError, "Did you mean `temperature`"),
        ({"extra_create_args": {"top_p": 3}}, myllm.InvalidParameterError, "top_p"),
        ({"extra_create_args": {"n": 2}}, myllm.InvalidParameterError, "takes one answer to a call"),
        ({"extra_create_args": {"num_return_sequences": 2}}, ValueError, "takes one answer to a call"),
        ({"extra_create_args": {"tools": [ADD_SENT]}}, myllm.InvalidParameterError, "`tools` come with each call"),
        ({"extra_create_args": {"tool_choice": "none"}}, myllm.InvalidParameterError, "an argument of its own"),
        ({"extra_create_args": {"mirostat": 2}}, myllm.UnsupportedFeatureError, "mirostat"),
        ({"json_output": True, "extra_create_args": {"regex": "a+"}}, myllm.InvalidParameterError, "`json_output` and `regex`"),
        ({"json_output": Outer, "extra_create_args": {"guided_json": {}}}, myllm.InvalidParameterError, "`json_schema`"),
        ({"json_output": "yes"}, myllm.InvalidParameterError, "'yes' is no pydantic model class"),
        ({"tools": ["add"]}, myllm.InvalidParameterError, r"`tools\[0\]` is a str"),
        ({"tool_choice": "required"}, myllm.InvalidParameterError, "needs `tools`"),
        ({"tool_choice": "any"}, myllm.InvalidParameterError, "must be 'auto', 'required', 'none' or a tool"),
        ({"tools": [{"name": "now"}], "tool_choice": ADD}, myllm.InvalidParameterError, "the tool 'add', and the `tools` are"),
    ],
)  # fmt: skip
async def test_refused_calls(
    wire: Any, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    model = client(wire)
    with pytest.raises(error, match=match):
        await model.create(M, **arguments)
    with pytest.raises(error, match=match):
        await anext(model.create_stream(M, **arguments))
    assert wire.seen == []


@pytest.mark.parametrize("messages", [[{"role": "user", "content": "hi"}], []])
async def test_refused_messages(wire: Any, messages: Any) -> None:
    with pytest.raises(myllm.InvalidParameterError, match="messages"):
        await client(wire).create(messages)
    assert wire.seen == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"temprature": 0.5}, "Did you mean `temperature`"),
        ({"n": 2}, "takes one answer to a call"),
        ({"prompt_logprobs": 0}, "`prompt_logprobs=0`: AutoGen's answers have no place"),
        ({"tools": [ADD_SENT]}, "`tools` come with each call of AutoGen"),
        ({"url": "http://a", "base_url": "http://b"}, "the same thing"),
        ({"client": "http://a"}, "must be a `myllm.AsyncClient`"),
        (
            {"client": myllm.Client("http://a"), "port": 8000},
            "`client` says already where to go: leave `port`",
        ),
        ({"client": myllm.AsyncClient("http://a"), "headers": {}}, "`headers` is no parameter of a model"),
        ({"engine": object(), "port": 8000}, "where `port` says nothing"),
        ({"model_info": {"visoin": True}}, "`model_info` has no field 'visoin'"),
    ],
)
def test_refused_settings(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(myllm.InvalidParameterError, match=match):
        MyLLMChatCompletionClient("m", **arguments)


async def test_model_info_that_denies_is_believed(wire: Any) -> None:
    denied = dict.fromkeys(("vision", "function_calling", "json_output", "structured_output"), False)
    model = client(wire, model_info={**denied, "family": "unknown"})
    assert model.model_info == {**denied, "family": "unknown"}  # all that AutoGen requires: nobody is asked
    image = UserMessage(content=[Image(PILImage.new("RGB", (1, 1)))], source="user")
    for arguments in ({"tools": [ADD]}, {"json_output": True}, {"json_output": Outer}, {"messages": [image]}):
        with pytest.raises(myllm.UnsupportedFeatureError, match="which `model_info` denies"):
            await model.create(**{"messages": M, **arguments})
    with pytest.raises(ValueError, match="does not support function calling"):
        AssistantAgent("assistant", model, tools=[ADD])
    assert wire.seen == []


async def test_calls_and_thoughts_of_an_answer(wire: Any) -> None:
    nameless = {**CALL, "id": None}
    wire.answers(
        answered({"content": None, "tool_calls": [CALL]}, "tool_calls"),
        answered({"content": "I add.", "tool_calls": [nameless, nameless]}, "stop"),
        answered({"content": "x", "reasoning": "hm", "tool_calls": [CALL]}, "length"),
        answered({"content": "so", "reasoning_content": "hm"}),
        answered({"content": None, "refusal": "no"}, "content_filter"),
        answered({"content": ""}, "abort"),
    )
    model = client(wire)
    calls, both, cut, thought, refused, ended = [await model.create(M) for _ in range(6)]
    assert (calls.finish_reason, calls.thought) == ("function_calls", None)
    assert calls.content == [FunctionCall(id="c1", name="add", arguments='{"a": 1, "b": 2}')]
    assert (both.finish_reason, both.thought) == ("function_calls", "I add.")
    first, second = both.content
    assert isinstance(first, FunctionCall)
    assert isinstance(second, FunctionCall)
    assert len({first.id, second.id, ""}) == 3  # results find their calls by it
    assert (cut.finish_reason, cut.thought) == ("length", "hm\n\nx")
    assert (thought.content, thought.thought) == ("so", "hm")
    assert (refused.content, refused.finish_reason) == ("no", "content_filter")
    assert (ended.content, ended.finish_reason) == ("", "unknown")


async def test_a_stream_of_everything(wire: Any) -> None:
    fragments = [
        {"role": "assistant", "reasoning_content": "h"},
        {"reasoning_content": "m"},
        {"content": "I "},
        {"content": "add."},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]},
        {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "add", "arguments": "{}"}}]},
    ]  # fmt: skip
    wire.streams(*events(*fragments, finish="tool_calls"))
    *texts, result = [part async for part in client(wire).create_stream(M, tools=[ADD])]
    assert texts == ["I ", "add."]
    assert result == CreateResult(
        finish_reason="function_calls",
        content=[
            FunctionCall(id="c1", name="add", arguments='{"a": 1}'),
            FunctionCall(id="c2", name="add", arguments="{}"),
        ],
        usage=RequestUsage(prompt_tokens=3, completion_tokens=4),
        cached=False,
        thought="hm\n\nI add.",
    )
    assert wire.bodies[0]["stream"] is True
    assert wire.bodies[0]["stream_options"] == {"include_usage": True}


async def test_an_agent_goes_through_a_tool(wire: Any) -> None:
    wire.answers(answered({"content": None, "tool_calls": [CALL]}, "tool_calls"), answered({"content": "3"}))
    model = client(wire, model_info={"vision": False, "function_calling": True, "json_output": True,
                                     "structured_output": True, "family": "unknown"})  # fmt: skip
    agent = AssistantAgent("assistant", model, tools=[add], reflect_on_tool_use=True)
    result = await agent.run(task="1 + 2?")
    assert result.messages[-1].content == "3"
    assert wire.bodies[1]["messages"][-2:] == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    assert "tools" in wire.bodies[0]
    assert "tools" not in wire.bodies[1]
    assert model.total_usage() == RequestUsage(prompt_tokens=6, completion_tokens=8)


async def test_answers_from_the_cache_are_told_apart(wire: Any) -> None:
    wire.answers(ANSWER)
    model = client(wire, cache=myllm.Cache(), temperature=0)
    results = [await model.create(M) for _ in range(2)]
    assert [result.cached for result in results] == [False, True]
    assert model.actual_usage() == RequestUsage(prompt_tokens=3, completion_tokens=4)
    assert model.total_usage() == RequestUsage(prompt_tokens=6, completion_tokens=8)
    assert len(wire.seen) == 1


async def test_a_server_without_usage(wire: Any) -> None:
    wire.answers({**ANSWER, "usage": None})
    assert (await client(wire).create(M)).usage == RequestUsage(prompt_tokens=0, completion_tokens=0)


async def test_autogen_s_log_of_calls(wire: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = client(wire)
    with caplog.at_level(logging.INFO, EVENT_LOGGER_NAME):
        wire.answers(ANSWER)
        await model.create(M, tools=[ADD])
        wire.streams(*events({"content": "ok"}))
        [_ async for _ in model.create_stream(M)]
    call, start, end = [record.msg for record in caplog.records if record.name == EVENT_LOGGER_NAME]
    assert [type(event) for event in (call, start, end)] == [
        LLMCallEvent,
        LLMStreamStartEvent,
        LLMStreamEndEvent,
    ]
    told = json.loads(str(call))
    assert told["messages"] == SENT
    assert told["tools"] == [ADD_SENT]
    assert told["response"]["choices"][0]["message"]["content"] == "ok"
    assert (
        (call.prompt_tokens, call.completion_tokens) == (end.prompt_tokens, end.completion_tokens) == (3, 4)
    )
    assert json.loads(str(start))["messages"] == SENT
    assert json.loads(str(end))["response"]["content"] == "ok"


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, {"error": {"message": "no such thing"}}, myllm.BadRequestError, "no such thing"),
        (401, {"error": {"message": "bad key"}}, myllm.AuthenticationError, "MYLLM_API_KEY"),
        (404, {"error": {"message": "The model `m` is not here"}}, myllm.NotFoundError, "is not here"),
        (429, {"error": {"message": "slow down"}}, myllm.RateLimitError, "slow down"),
        (503, {"error": {"message": "loading"}}, myllm.OverloadedError, "loading"),
    ],
)
async def test_statuses(wire: Any, status: int, body: Any, error: type[Exception], match: str) -> None:
    wire.handler = lambda seen, reply: reply.json(body, status, {"retry-after-ms": "1"})
    model = client(wire, max_retries=1)
    with pytest.raises(error, match=match) as caught:
        await AssistantAgent("assistant", model, tools=None).on_messages([], CancellationToken())
    assert getattr(caught.value, "status", None) == status
    wire.seen.clear()
    with pytest.raises(error, match=match):
        await anext(model.create_stream(M))
    assert len(wire.seen) == (2 if status in (429, 503) else 1)


async def test_no_server(free_port: int) -> None:
    model = MyLLMChatCompletionClient("m", port=free_port, max_retries=0)
    start = time.monotonic()
    words = f"No server answers at .*:{free_port}.*myllm serve"
    for ask in (
        lambda: model.create(M),
        lambda: anext(model.create_stream(M)),
        lambda: asyncio.to_thread(model.count_tokens, M),
        lambda: asyncio.to_thread(lambda: model.model_info),
        lambda: AssistantAgent("assistant", model).run(task="hi"),
    ):
        with pytest.raises(myllm.ConnectError, match=words):
            await ask()
    with pytest.raises(RuntimeError, match=f"ConnectError: {words}"):  # AutoGen's runtime tells its words
        await RoundRobinGroupChat([AssistantAgent("assistant", model)], max_turns=1).run(task="hi")
    assert time.monotonic() - start < 10


async def test_time_limits(wire: Any, black_hole: int) -> None:
    wire.handler = lambda seen, reply: time.sleep(0.6)
    with pytest.raises(TimeoutError, match="did not finish its answer within the deadline"):
        await client(wire, timeout=0.2).create(M)
    with pytest.raises(myllm.RequestTimeoutError, match="was silent for 0.1 s"):
        await client(wire).create(M, extra_create_args={"timeout": myllm.Timeout(first_byte=0.1)})
    deaf = MyLLMChatCompletionClient("m", port=black_hole, timeout=myllm.Timeout(connect=0.2), max_retries=0)
    with pytest.raises(myllm.ConnectError, match="did not accept a connection within 0.2 s"):
        await deaf.create(M)


async def test_a_broken_stream_tells_what_had_come(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        reply.start_stream()
        reply.piece(events({"content": "par"})[0])
        time.sleep(0.1)
        reply.hang_up()

    wire.handler = handler
    stream = client(wire, max_retries=0).create_stream(M)
    assert await anext(stream) == "par"
    with pytest.raises(myllm.IncompleteStreamError) as caught:
        await anext(stream)
    assert caught.value.partial.text == "par"


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_call_closes_its_connection(wire: Any, streamed: bool, thread: bool) -> None:
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handler(seen: Any, reply: Any) -> None:
        connection = reply._http.connection
        if streamed:
            reply.start_stream()
            reply.piece(events({"content": "par"})[0])
        connection.settimeout(10)
        assert connection.recv(1) == b""  # the other side closed it
        loop.call_soon_threadsafe(gone.set)
        reply._http.close_connection = True

    wire.handler = handler
    token = CancellationToken()
    model = client(wire)
    if streamed:
        stream = model.create_stream(M, cancellation_token=token)
        assert await anext(stream) == "par"
        waiting = asyncio.ensure_future(anext(stream))
    else:
        waiting = asyncio.ensure_future(model.create(M, cancellation_token=token))
    await asyncio.sleep(0.1)
    if thread:
        threading.Thread(target=token.cancel).start()
    else:
        token.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        await gone.wait()


LISTED = {
    "object": "list",
    "data": [{"id": "m", "object": "model", "owned_by": "vllm", "max_model_len": 100}],
}


def kind(owner: str, **answers: Any) -> Any:
    """Return a handler of a server of a kind, that answers questions about itself."""
    listing = {"data": [{**LISTED["data"][0], "owned_by": owner}]}
    known = {"/v1/models": listing, **{f"/{path}": body for path, body in answers.items()}}

    def handler(seen: Any, reply: Any) -> None:
        if seen.path in known:
            reply.json(known[seen.path])
        else:
            reply.json({"error": "no such path"}, 404)

    return handler


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (kind("vllm", version={"version": "0.12.0"}), {}),
        (kind("sglang", server_info={"version": "0.5.0", "tool_call_parser": None}), {"function_calling": False}),
        (kind("sglang", server_info={"version": "0.5.0", "tool_call_parser": "qwen"}), {}),
        (kind("sglang"), {}),
        (kind("llamacpp", props={"modalities": {"vision": False}}), {"vision": False}),
        (kind("llamacpp", props={"modalities": {"vision": True}}), {}),
        (kind("m", info={"max_total_tokens": 100, "model_id": "m"}), {"json_output": False}),
    ],
)  # fmt: skip
def test_what_each_kind_of_server_tells(wire: Any, handler: Any, told: dict[str, bool]) -> None:
    wire.handler = handler
    model = MyLLMChatCompletionClient("m", wire.url)
    everything = dict.fromkeys(("vision", "function_calling", "json_output", "structured_output"), True)
    usual = {**everything, "family": "unknown", "multiple_system_messages": True}
    assert model.model_info == {**usual, **told}
    asked = len(wire.seen)
    assert model.model_info == {**usual, **told}
    assert len(wire.seen) == asked  # once
    assert client(wire, message_policy="as_is").model_info["multiple_system_messages"] is False


async def test_what_calls_found_out_is_not_asked_again(wire: Any) -> None:
    version = {"version": "0.12.0"}

    def handler(seen: Any, reply: Any) -> None:
        reply.json({"/v1/models": LISTED, "/version": version}.get(seen.path, ANSWER))

    wire.handler = handler
    model = MyLLMChatCompletionClient("m", wire.url)
    await model.create(M)
    asked = len(wire.seen)
    assert model.model_info["vision"]
    assert len(wire.seen) == asked


def test_tokens_by_the_server_s_tokenizer(wire: Any) -> None:
    tokens = {"tokens": [1, 2, 3], "count": 3, "max_model_len": 50}
    wire.answers(tokens)
    model = client(wire, chat_template_kwargs={"enable_thinking": False}, temperature=0)
    assert model.count_tokens(M, tools=[ADD]) == 3
    assert model.remaining_tokens(M) == 47
    assert wire.seen[0].path == "/tokenize"
    assert wire.bodies[0] == {
        "model": "m", "messages": SENT, "tools": [ADD_SENT], "chat_template_kwargs": {"enable_thinking": False},
    }  # fmt: skip
    silent = MyLLMChatCompletionClient("m", wire.url, dialect="openai")
    with pytest.raises(myllm.UnsupportedFeatureError, match="no endpoint for their tokenizer"):
        silent.count_tokens(M)


async def test_nothing_secret_is_dumped(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answers(ANSWER)
    model = client(
        wire, api_key="secret-1", headers={"X-Key": "secret-2"},
        http=myllm.HTTPOptions(proxy="http://u:secret-3@proxy:1", verify=False),
        timeout=myllm.Timeout(total=9, first_byte=None), breaker=None, top_k=5, json_schema=Inner,
        extra_body={"own": 1}, model_info={"vision": False}, add_name_prefixes=True, policy="affinity",
    )  # fmt: skip
    text = model.dump_component().model_dump_json()
    assert "secret" not in text
    assert "secret" not in repr(model.dump_component())
    loaded = ChatCompletionClient.load_component(json.loads(text))
    assert isinstance(loaded, MyLLMChatCompletionClient)
    settings, before = loaded.client.__getstate__(), model.client.__getstate__()
    for name in ("timeout", "breaker", "policy", "top_k", "dialect", "message_policy", "model"):
        assert settings[name] == before[name], name
    assert settings["json_schema"] == Inner.model_json_schema()
    assert settings["http"].verify is False
    assert loaded.model_info["vision"] is False
    monkeypatch.setenv("MYLLM_API_KEY", "from the environment")
    keyed = ChatCompletionClient.load_component(json.loads(text))
    wire.answers(answered({"content": '{"word": "x"}'}))
    await keyed.create(M)
    assert wire.seen[-1].headers["authorization"] == "Bearer from the environment"
    assert wire.bodies[-1]["own"] == 1
    assert wire.bodies[-1]["messages"][0]["content"] == "user said:\nhi"


async def test_a_component_written_by_hand(wire: Any) -> None:
    wire.answers(ANSWER)
    config = {
        "model": "m", "url": wire.url, "api_key": "mine", "dialect": "vllm", "timeout": 5, "top_k": 3,
        "endpoints": None,
    }  # fmt: skip
    component = {"provider": "myllm_adapters.agentchat.MyLLMChatCompletionClient", "config": config}
    await ChatCompletionClient.load_component(component).create(M)
    assert wire.seen[0].headers["authorization"] == "Bearer mine"
    assert wire.bodies[0]["top_k"] == 3
    with pytest.raises(myllm.UnknownParameterError, match="Did you mean `top_k`"):
        ChatCompletionClient.load_component({**component, "config": {**config, "topk": 1}})


async def test_a_client_that_is_given(wire: Any) -> None:
    wire.answers(ANSWER)
    async with myllm.AsyncClient(wire.url, model="m", dialect="vllm", temperature=0) as shared:
        model = MyLLMChatCompletionClient(client=shared, top_k=3)
        await model.create(M)
        await model.close()
        assert (await shared.chat("hi")).text == "ok"  # still open
    synchronous = MyLLMChatCompletionClient("other", client=myllm.Client(wire.url, dialect="vllm", top_p=0.5))
    await synchronous.create(M)
    assert wire.bodies[0] == {"model": "m", "messages": SENT, "temperature": 0, "top_k": 3}
    assert wire.bodies[-1] == {"model": "other", "messages": SENT, "top_p": 0.5}
    await synchronous.close()


async def test_pickled(wire: Any) -> None:
    wire.answers(ANSWER)
    model = client(wire, top_k=5)
    again = pickle.loads(pickle.dumps(model))
    assert (await again.create(M)).content == "ok"
    assert wire.bodies[0]["top_k"] == 5
