"""What the writers of responses and of messages make of reasoning and tool calls, delta by delta."""

from __future__ import annotations

import json
from types import SimpleNamespace

import anthropic.types
import openai.types.responses
import pytest
from pydantic import TypeAdapter

from myllm_engine.request import SamplingParams
from myllm_engine.server.anthropic.writer import MessageWriter
from myllm_engine.server.openai.conversation import Delta, ToolCallDelta
from myllm_engine.server.openai.responses.request import ResponseRequest
from myllm_engine.server.openai.responses.writer import ResponseWriter, new_response

# A model thinks, says something, and calls two functions; the second one's arguments come in pieces.
DELTAS = [
    Delta(0, reasoning="Two ", token_ids=[1]),
    Delta(0, reasoning="calls.", token_ids=[2]),
    Delta(0, token_ids=[3]),
    Delta(0, text="I look ", token_ids=[4]),
    Delta(0, text="it up.", token_ids=[5]),
    Delta(0, tool_calls=[ToolCallDelta(0, "call_1", "now", "{}")], token_ids=[6]),
    Delta(0, tool_calls=[ToolCallDelta(1, "call_2", "weather", "")], token_ids=[7]),
    Delta(0, tool_calls=[ToolCallDelta(1, arguments='{"city": ')], token_ids=[8]),
    Delta(0, tool_calls=[ToolCallDelta(1, arguments='"Rome"}')], token_ids=[9]),
    Delta(0, finish_reason="tool_calls", token_ids=[10]),
]


@pytest.fixture
def generation():
    return SimpleNamespace(
        prompt_tokens=7,
        completion_tokens=10,
        cached_tokens=4,
        reasoning_tokens=2,
        requests=[SimpleNamespace(params=SamplingParams(temperature=0.5))],
    )


def data(events: bytes) -> list[dict]:
    return [json.loads(block.split("\ndata: ")[1]) for block in events.decode().split("\n\n")[:-1]]


def write_response(generation, deltas, **options):
    body = ResponseRequest(input="x")
    response = new_response(body, id_="resp_1", model="m", stored=True)
    writer = ResponseWriter(response, None, show_reasoning=True, **options)
    events = writer.begin(generation)
    for delta in deltas:
        events += writer.add(delta)
    events += writer.end(generation)
    return data(b"".join(events)), response


def test_a_responses_items_and_events(generation):
    events, response = write_response(generation, DELTAS)
    item = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    call = ["response.output_item.added", "response.function_call_arguments.delta"]
    called = ["response.function_call_arguments.done", "response.output_item.done"]
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        *item, *["response.reasoning_text.delta"] * 2, "response.reasoning_text.done", *done,
        *item, *["response.output_text.delta"] * 2, "response.output_text.done", *done,
        *call, *called,
        *call, call[1], *called,
        "response.completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    # The SDK's own types take every event, strictly.
    known = TypeAdapter(openai.types.responses.ResponseStreamEvent)
    for event in events:
        read = known.validate_python(event)
        assert read.type == event["type"]
    thoughts, message, first, second = response["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Two calls."}]
    assert message["content"][0]["text"] == "I look it up."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "now", "{}")
    assert (second["call_id"], second["name"]) == ("call_2", "weather")
    assert json.loads(second["arguments"]) == {"city": "Rome"}
    assert {entry["status"] for entry in response["output"]} == {"completed"}
    assert [event["output_index"] for event in events if "output_index" in event] == sorted(
        [0] * 7 + [1] * 7 + [2] * 4 + [3] * 5
    )
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 4
    assert response["usage"]["input_tokens"] == 7
    assert response["usage"]["total_tokens"] == 17
    assert response["temperature"] == 0.5


def test_a_cut_call_is_incomplete(generation):
    cut = [*DELTAS[:8], Delta(0, finish_reason="length")]
    events, response = write_response(generation, cut)
    assert events[-1]["type"] == "response.incomplete"
    assert [item["status"] for item in response["output"]] == [*["completed"] * 3, "incomplete"]
    assert response["output"][-1]["arguments"] == '{"city": '


def test_reasoning_may_be_left_out(generation):
    body = ResponseRequest(input="x", include_reasoning=False)
    response = new_response(body, id_="resp_1", model="m", stored=True)
    writer = ResponseWriter(response, None, show_reasoning=False)
    for delta in DELTAS:
        writer.add(delta)
    writer.end(generation)
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "function_call"]
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def write_message(generation, deltas, **options):
    writer = MessageWriter("msg_1", "m", **{"shows_thinking": True, **options})
    events = writer.begin(generation)
    for delta in deltas:
        events += writer.add(delta)
    events += writer.end(generation)
    return data(events), writer.message


def test_a_messages_blocks_and_events(generation):
    events, message = write_message(generation, DELTAS)
    assert [(event["type"], event.get("index")) for event in events] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("ping", None),
        *[("content_block_delta", 0)] * 2,
        ("content_block_stop", 0),
        ("content_block_start", 1),
        *[("content_block_delta", 1)] * 2,
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("content_block_start", 3),
        *[("content_block_delta", 3)] * 2,
        ("content_block_stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]
    known = TypeAdapter(anthropic.types.RawMessageStreamEvent)
    for event in events:
        if event["type"] != "ping":
            assert known.validate_python(event).type == event["type"]
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta"] * 2 + ["text_delta"] * 2 + ["input_json_delta"] * 3
    assert message["content"] == [
        {"type": "thinking", "thinking": "Two calls.", "signature": ""},
        {"type": "text", "text": "I look it up."},
        {"type": "tool_use", "id": "call_1", "name": "now", "input": {}},
        {"type": "tool_use", "id": "call_2", "name": "weather", "input": {"city": "Rome"}},
    ]
    usage = message["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (3, 4, 10)
    assert message["stop_reason"] == "tool_use"
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert anthropic.types.Message.model_validate(message).content[3].input == {"city": "Rome"}


def test_a_messages_thoughts_may_be_omitted(generation):
    events, message = write_message(generation, DELTAS, shows_thinking=False)
    assert [block["type"] for block in message["content"]] == ["text", "tool_use", "tool_use"]
    assert [event["type"] for event in events].count("content_block_start") == 3


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (Delta(0, finish_reason="length"), ("max_tokens", None)),
        # A function that must be called ends with "stop" in chats.
        (Delta(0, finish_reason="stop"), ("tool_use", None)),
    ],
)
def test_why_a_message_with_calls_ends(generation, last, reason):
    _, message = write_message(generation, [*DELTAS[:8], last])
    assert (message["stop_reason"], message["stop_sequence"]) == reason
    assert message["content"][-1]["input"] == {}  # it was cut off
