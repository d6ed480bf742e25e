"""Anthropic's Messages API on the bundled model, used through the anthropic SDK."""

from __future__ import annotations

import json
from typing import Literal

import anthropic
import httpx
import pytest

from myllm_engine.errors import EngineDeadError, EngineError, QueueFullError
from myllm_engine.server.settings import ServerSettings

QUESTION = "What is the capital of France? Answer in one sentence."
CHAT = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def client(live):
    with anthropic.Anthropic(base_url=live.url, api_key="-", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def ask(client):
    """Make a greedy message."""

    def ask(messages=CHAT, max_tokens=40, **more):
        extra = {"temperature": 0, **more.pop("extra_body", {})}
        return client.messages.create(
            model="smollm2", messages=messages, max_tokens=max_tokens, extra_body=extra, **more
        )

    return ask


@pytest.fixture(scope="module")
def chat(http):
    """Return the content of what chat completions say to the same messages, the reference here."""

    def chat(messages, **more):
        answer = http.post(
            "/v1/chat/completions", json={"messages": messages, "temperature": 0, **more}
        ).json()
        return answer["choices"][0]["message"]["content"], answer["usage"]

    return chat


def events_of(text):
    """Return the events of a stream as they were sent, after a look at their framing."""
    *blocks, rest = text.split("\n\n")
    assert rest == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def test_a_message_says_what_a_chat_says(ask, chat):
    text, usage = chat(CHAT)
    message = ask()
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "smollm2")
    assert [(block.type, block.text) for block in message.content] == [("text", text)]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == usage["prompt_tokens"]
    assert message.usage.output_tokens == usage["completion_tokens"]
    assert message._request_id == message.id


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ({"system": "Be brief."}, [{"role": "system", "content": "Be brief."}, *CHAT]),
        ({"system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]}, [{"role": "system", "content": "Be brief."}, *CHAT]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]}, CHAT),
        # Consecutive turns of one role are one.
        ({"messages": [{"role": "user", "content": "Hello."}, *CHAT]}, [{"role": "user", "content": f"Hello.\n{QUESTION}"}]),
        # An assistant's turn at the end is gone on with.
        (
            {"messages": [*CHAT, {"role": "assistant", "content": "The capital of France is called"}]},
            [*CHAT, {"role": "assistant", "content": "The capital of France is called"}],
        ),
    ],
)  # fmt: skip
def test_blocks_are_the_messages_of_a_chat(ask, chat, body, messages):
    prefill = {"continue_final_message": True, "add_generation_prompt": False}
    goes_on = prefill if messages[-1]["role"] == "assistant" else {}
    text, _ = chat(messages, max_tokens=8, **goes_on)
    assert ask(max_tokens=8, **body).content[0].text == text


def test_a_limit_and_a_stop_sequence_are_told(ask):
    cut = ask(max_tokens=3)
    assert (cut.stop_reason, cut.stop_sequence, cut.usage.output_tokens) == ("max_tokens", None, 3)
    stopped = ask(stop_sequences=["xyz", " France"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " France")
    assert stopped.content[0].text == ask().content[0].text.split(" France")[0]


def test_sampling_reaches_the_engine(client):
    body = {"model": "smollm2", "messages": CHAT, "max_tokens": 8}
    greedy = client.messages.create(**body, extra_body={"temperature": 0}).content
    assert client.messages.create(**body, extra_body={"temperature": 5.0, "top_k": 1}).content == greedy
    assert client.messages.create(**body, extra_body={"temperature": 5.0, "top_p": 1e-6}).content == greedy
    assert client.messages.create(**body, extra_body={"temperature": 5.0}).content != greedy


def test_json_by_schema(ask):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}  # fmt: skip
    message = ask(output_config={"format": {"type": "json_schema", "schema": schema}})
    assert list(json.loads(message.content[0].text)) == ["city"]


def test_tokens_are_counted(client, ask):
    count = client.messages.count_tokens(model="smollm2", messages=CHAT, system="Be brief.")
    usage = ask(system="Be brief.", max_tokens=1).usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


# Tools

WEATHER = {
    "name": "get_weather",
    "description": "Tell the weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_call_and_its_result(ask, choice):
    choice = {**choice, "disable_parallel_tool_use": True}
    message = ask(ASK, tools=[WEATHER], tool_choice=choice)
    [call] = message.content
    assert (call.type, call.name) == ("tool_use", "get_weather")
    assert list(call.input) == ["city"]
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "Snow."}]}
    history = [*ASK, {"role": "assistant", "content": message.content}]
    answer = ask(
        [*history, {"role": "user", "content": [result]}], tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert answer.content[0].type == "text"
    again = ask([*history, {"role": "user", "content": [{**result, "is_error": True}]}], max_tokens=1)
    assert again.usage.input_tokens > 0


def test_a_streamed_call_joins_to_the_plain_one(client, ask):
    arguments = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    plain = ask(ASK, **arguments).content
    with client.messages.stream(model="smollm2", messages=ASK, max_tokens=40, extra_body={"temperature": 0}, **arguments) as stream:  # fmt: skip
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert final.content[0].input == plain[0].input
    assert final.stop_reason == "tool_use"


def test_what_a_model_writes_is_told_apart(scripted, said):
    pieces = (
        "<think>Hm.</think>I look.",
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>',
    )
    script = [said((piece, piece.encode(), None)) for piece in pieces] + [said(("", b"", "stop"))]
    settings = ServerSettings(
        enable_auto_tool_choice=True, tool_call_parser="hermes", reasoning_parser="qwen3"
    )
    with scripted(script, settings) as live:
        client = anthropic.Anthropic(base_url=live.url, api_key="-")
        arguments = {"model": "default", "max_tokens": 9, "messages": ASK, "tools": [WEATHER]}
        message = client.messages.create(**arguments)
        thoughts, text, call = message.content
        assert (thoughts.type, thoughts.thinking) == ("thinking", "Hm.")
        assert (text.type, text.text) == ("text", "I look.")
        assert (call.type, call.input) == ("tool_use", {"city": "Oslo"})
        assert message.stop_reason == "tool_use"
        thinking = {"type": "adaptive", "display": "omitted"}
        message = client.messages.create(**arguments, thinking=thinking)
        assert [block.type for block in message.content] == ["text", "tool_use"]


# Streams


def test_the_events_are_anthropics_in_order(http):
    body = {"messages": CHAT, "max_tokens": 40, "temperature": 0}
    plain = http.post("/v1/messages", json=body).json()
    answer = http.post("/v1/messages", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    deltas = [event for event in events if event["type"] == "content_block_delta"]
    assert len(deltas) > 3
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert start["content"] == []
    assert start["stop_reason"] is None
    assert events[1]["content_block"] == {"type": "text", "text": ""}
    assert {event["delta"]["type"] for event in deltas} == {"text_delta"}
    assert {event["index"] for event in [events[1], *deltas, events[-3]]} == {0}
    assert "".join(event["delta"]["text"] for event in deltas) == plain["content"][0]["text"]
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == plain["usage"]["output_tokens"]


def test_the_sdk_follows_a_stream(client, ask):
    arguments = {"model": "smollm2", "messages": CHAT, "max_tokens": 40}
    with client.messages.stream(**arguments, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == ask().content[0].text
    assert final.stop_reason == "end_turn"


async def test_the_async_sdk_follows_a_stream(live):
    async with anthropic.AsyncAnthropic(base_url=live.url, api_key="-") as client:
        async with client.messages.stream(model="smollm2", messages=CHAT, max_tokens=3) as stream:
            assert (await stream.get_final_message()).stop_reason == "max_tokens"


def test_a_failure_in_a_stream_is_an_error_of_the_sdk(scripted, said):
    with scripted([said(("Hel", b"Hel", None)), EngineError("out of pages")]) as live:
        body = {"messages": CHAT, "max_tokens": 5, "stream": True}
        events = events_of(httpx.post(f"{live.url}/v1/messages", json=body).text)
        assert events[-1] == {"type": "error", "error": {"type": "api_error", "message": "out of pages"}}
        client = anthropic.Anthropic(base_url=live.url, api_key="-", max_retries=0)
        with pytest.raises(anthropic.APIStatusError, match="out of pages"):
            with client.messages.stream(model="default", messages=CHAT, max_tokens=5) as stream:
                stream.until_done()


def test_an_empty_answer_is_an_empty_block(scripted, said):
    with scripted([said(("", b"", "stop"))]) as live:
        body = {"messages": CHAT, "max_tokens": 5}
        answer = httpx.post(f"{live.url}/v1/messages", json=body).json()
        assert answer["content"] == [{"type": "text", "text": ""}]


def test_the_sdks_runner_of_tools_goes_on_without_a_thread(client):
    called = []

    @anthropic.beta_tool
    def get_weather(city: Literal["Paris", "Rome"]) -> str:
        """Look up the weather.

        Args:
            city: where.
        """
        called.append(city)
        return "sunny"

    runner = client.beta.messages.tool_runner(
        model="smollm2",
        max_tokens=60,
        messages=CHAT,
        tools=[get_weather],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_iterations=2,
    )
    first, second = runner
    assert [block.input["city"] for block in (*first.content, *second.content)] == called
    # The second prompt holds the first call and its result.
    tokens = [
        message.usage.input_tokens + message.usage.cache_read_input_tokens for message in (first, second)
    ]
    assert tokens[1] > tokens[0]


# What is refused

TOOL = {"name": "f", "input_schema": {"type": "object", "properties": {}}}
CALL = {"type": "tool_use", "id": "1", "name": "f", "input": {}}


def said_by(role, *blocks):
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"max_tokens": None}, "`max_tokens`"),
        ({"max_tokens": 0}, "`max_tokens`"),
        ({"messages": []}, "`messages`: list should have at least 1 item"),
        ({"messages": [{"role": "bird", "content": "x"}]}, "`messages[0].role`"),
        ({"stop": ["x"]}, "'stop'"),
        ({"temprature": 1}, "did you mean `temperature`?"),
        ({"temperature": -1}, "temperature"),
        ({"stop_sequences": [""]}, "stop"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "'bash_20250124' are Anthropic's own"),
        ({"tools": [{"name": "f"}]}, "`tools[0].input_schema` is required"),
        ({"tool_choice": {"type": "any"}}, "needs `tools`"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "'g', which is not in `tools`"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "`name` is required by this type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 1000}, "less than `max_tokens`"),
        ({"max_tokens": 10**6}, "lower `max_tokens`"),
        ({"output_config": {"effort": "huge"}}, "`output_config.effort` must be one of"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "A function's name"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "contexts are not edited"),
        ({"system": [CALL]}, "'tool_use' do not belong to the role 'system'"),
        (said_by("user", {"type": "document", "source": {}}), "messages[0].content[0].type: Blocks of the type 'document'"),
        (said_by("user", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}), "image"),
        (said_by("user", {"type": "text", "txt": "x"}), "did you mean `text`?"),
        (said_by("user", CALL), "'tool_use' do not belong to the role 'user'"),
        (said_by("assistant", CALL), "send their results"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_400_that_names_the_field(http, body, says):
    answer = http.post("/v1/messages", json={"messages": CHAT, "max_tokens": 5, **body})
    assert answer.status_code == 400
    content = answer.json()
    assert content["type"] == "error"
    assert content["error"]["type"] == "invalid_request_error"
    assert says in content["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/v1/messages", {"messages": CHAT, "max_tokens": 5, "model": "claude"}, anthropic.NotFoundError),
        ("/v1/messages/count_tokens", {"messages": CHAT, "model": "claude"}, anthropic.NotFoundError),
        ("/v1/messages/count_tokens", {"messages": CHAT, "max_tokens": 5}, anthropic.BadRequestError),
        ("/v1/messages", b"{", anthropic.BadRequestError),
    ],
)
def test_the_sdk_reads_the_errors(client, path, body, error):
    with pytest.raises(error) as raised:
        if isinstance(body, bytes):
            client.post(path, content=body, cast_to=object, options={"headers": {"content-type": "application/json"}})  # fmt: skip
        else:
            client.post(path, body=body, cast_to=object)
    assert raised.value.body["type"] == "error"


@pytest.mark.parametrize(
    ("failure", "status", "kind"),
    [
        (QueueFullError("9 wait already"), 529, "overloaded_error"),
        (EngineDeadError("out of memory"), 500, "api_error"),
        (EngineError("no"), 500, "api_error"),
    ],
)
def test_failures_have_anthropics_statuses(scripted, failure, status, kind):
    with scripted([failure]) as live:
        answer = httpx.post(f"{live.url}/v1/messages", json={"messages": CHAT, "max_tokens": 5})
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == kind
        assert ("retry-after" in answer.headers) == (status == 529)


def test_failures_outside_of_the_route_are_worded_alike(http, scripted):
    answer = http.get("/v1/messages")
    assert answer.status_code == 405
    assert answer.json()["error"]["type"] == "invalid_request_error"
    with scripted([], ServerSettings(max_body_size=10)) as live:
        answer = httpx.post(f"{live.url}/v1/messages", json={"messages": CHAT, "max_tokens": 5})
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "request_too_large"


def test_the_key_is_taken_as_the_sdk_sends_it(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(api_keys=("key",))) as live:
        arguments = {"model": "default", "messages": CHAT, "max_tokens": 5}
        client = anthropic.Anthropic(base_url=live.url, api_key="key", max_retries=0)
        assert client.messages.create(**arguments).content[0].text == "ok"
        client = anthropic.Anthropic(base_url=live.url, auth_token="key", max_retries=0)
        assert client.messages.create(**arguments).content[0].text == "ok"
        client = anthropic.Anthropic(base_url=live.url, api_key="wrong", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError) as raised:
            client.messages.create(**arguments)
        assert raised.value.body["error"]["type"] == "authentication_error"


def test_what_asks_for_nothing_is_accepted(http):
    body = {
        "messages": CHAT,
        "max_tokens": 1,
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        "speed": "standard",
        "stop_sequences": [],
        "thinking": {"type": "disabled"},
        "tool_choice": {"type": "none"},
        "tools": [],
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    }
    assert http.post("/v1/messages", json=body).status_code == 200
