"""llama-server and llama-cpp-python: their words, against answers recorded from both."""

from __future__ import annotations

import json

import pytest

from myllm import Client, ContextLengthError, UnsupportedFeatureError
from myllm.errors import ConstraintNotEnforced

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
WHO = {
    "llama-server": {"/v1/models": "models.json", "/props": "props.json"},
    "llama-cpp-python": {"/v1/models": "models.json", "/openapi.json": "openapi.json"},
}
SCHEMA = {"type": "object", "properties": {"zork": {"type": "integer"}}, "required": ["zork"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def start(replay):
    """Start one of the two servers with these answers; return the wire and a client."""

    def begin(server, answers, **options):
        table = {**WHO[server], **answers}
        wire = replay(
            {
                k: (v[0], f"{server}/{v[1]}") if isinstance(v, tuple) else f"{server}/{v}"
                for k, v in table.items()
            }
        )
        return wire, Client(wire.url, dialect="llamacpp", max_retries=0, **options)

    return begin


def calls(wire):
    """The requests after the two questions of who is there."""
    assert [seen.method for seen in wire.seen[:2]] == ["GET", "GET"]
    return wire.seen[2:]


def test_llama_server_s_words(start):
    wire, client = start("llama-server", {CHAT: "chat.json"})
    with client:
        client.chat("x", repetition_penalty=1.1, top_k=-1, min_p=0.1, typical_p=0.9, ignore_eos=True,
                    logit_bias={7: -1.5}, seed=3, repeat_last_n=32, mirostat=2, mirostat_tau=4.0,
                    reasoning_effort="low", max_tokens=4)  # fmt: skip
    (call,) = calls(wire)
    assert call.body.pop("messages") == [{"role": "user", "content": "x"}]
    assert call.body == {
        "model": "smollm2", "repeat_penalty": 1.1, "top_k": 0, "min_p": 0.1, "typical_p": 0.9,
        "ignore_eos": True, "logit_bias": [[7, -1.5]], "seed": 3, "repeat_last_n": 32, "mirostat": 2,
        "mirostat_tau": 4.0, "reasoning_effort": "low", "max_tokens": 4,
    }  # fmt: skip


def test_llama_cpp_python_s_words(start):
    wire, client = start("llama-cpp-python", {CHAT: "chat.json"})
    with client:
        client.chat("x", repetition_penalty=1.0, top_k=-1, min_tokens=2, logit_bias={7: -1.5}, mirostat=2)
    (call,) = calls(wire)
    assert call.body.pop("messages") == [{"role": "user", "content": "x"}]
    assert call.body == {
        "model": "smollm2", "repeat_penalty": 1.0, "top_k": 0, "min_tokens": 2, "logit_bias": {"7": -1.5},
        "mirostat_mode": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("server", "kind", "given"),
    [
        ("llama-server", "chat", {"min_tokens": 2}),
        ("llama-server", "chat", {"stop_token_ids": [2]}),
        ("llama-server", "chat", {"include_stop_str_in_output": True}),
        ("llama-server", "chat", {"regex": "a+"}),
        ("llama-server", "chat", {"chat_template": "{{ x }}"}),
        ("llama-server", "completion", {"echo": True}),
        ("llama-server", "completion", {"suffix": "b"}),
        ("llama-server", "completion", {"best_of": 2}),
        ("llama-cpp-python", "chat", {"typical_p": 0.5}),
        ("llama-cpp-python", "chat", {"ignore_eos": True}),
        ("llama-cpp-python", "chat", {"regex": "a+"}),
        ("llama-cpp-python", "chat", {"max_tokens": 0}),
        ("llama-cpp-python", "chat", {"tools": TOOLS, "tool_choice": "required"}),
        ("llama-cpp-python", "chat", {"chat_template_kwargs": {"a": 1}}),
        ("llama-cpp-python", "completion", {"json_schema": SCHEMA}),
        ("llama-cpp-python", "completion", {"repeat_last_n": 32}),
        ("llama-cpp-python", "completion", {"echo": True, "logprobs": 1}),  # shifted by one
    ],
)
def test_what_they_ignore_is_refused(start, server, kind, given):
    wire, client = start(server, {})
    name = "tool_choice" if "tools" in given else next(iter(given))
    with client, pytest.raises(UnsupportedFeatureError, match=f"`{name}="):
        client.chat("x", **given) if kind == "chat" else client.complete("x", **given)
    assert calls(wire) == []


def test_token_ids_as_a_prompt(start):
    wire, client = start("llama-server", {COMPLETION: "completion.json"})
    with client:
        client.complete([504, 3575])
    assert calls(wire)[0].body["prompt"] == [504, 3575]


def test_no_token_ids_for_llama_cpp_python(start):
    _, client = start("llama-cpp-python", {})
    with client, pytest.raises(UnsupportedFeatureError, match="text only"):
        client.complete([504, 3575])


def test_tools_that_the_template_would_leave_out_are_refused(start, recorded):
    """The recorded server has a template without tools: it answered as if none had been given."""
    assert json.loads(recorded("llama-server/props.json"))["chat_template_caps"]["supports_tools"] is False
    wire, client = start("llama-server", {CHAT: "chat.json"})
    with client, pytest.raises(UnsupportedFeatureError, match="no place for tools"):
        client.chat("x", tools=TOOLS)
    assert calls(wire) == []


def test_a_named_tool_would_be_taken_for_any(wire, recorded):
    props = json.loads(recorded("llama-server/props.json"))
    props["chat_template_caps"]["supports_tools"] = True
    bodies = {"/props": props, "/v1/models": json.loads(recorded("llama-server/models.json"))}
    chat = json.loads(recorded("llama-server/chat.json"))
    wire.handler = lambda seen, reply: reply.json(bodies.get(seen.path, chat))
    with Client(wire.url, dialect="llamacpp") as client:
        with pytest.raises(UnsupportedFeatureError, match='tool_choice="required"'):
            client.chat("x", tools=TOOLS, tool_choice=NAMED)
        client.chat("x", tools=TOOLS, tool_choice="required")
    assert (wire.bodies[2]["tools"], wire.bodies[2]["tool_choice"]) == (TOOLS, "required")


@pytest.mark.parametrize("server", list(WHO))
@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"grammar": 'root ::= "xyzzy"'}, 'root ::= "xyzzy"'),
        ({"choice": ["xyzzy", 'pl"u\\gh']}, 'root ::= "xyzzy" | "pl\\"u\\\\gh"'),
    ],
)
def test_grammars_and_choices(start, server, given, sent):
    wire, client = start(server, {COMPLETION: "completion_grammar.json"})
    with client:
        answer = client.complete("x", **given)
    assert calls(wire)[0].body["grammar"] == sent
    assert answer.text == "xyzzy"


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": SCHEMA},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
    ],
)
def test_a_schema_is_said_in_each_server_s_own_way(start, given):
    wire, client = start("llama-server", {COMPLETION: "completion_json_schema.json"})
    with client:
        assert client.complete("x", **given).choices[0].finish_reason == "length"
    assert calls(wire)[0].body["json_schema"] == SCHEMA

    wire, client = start("llama-cpp-python", {CHAT: "chat.json"})
    wire.seen.clear()
    with client, pytest.raises(ConstraintNotEnforced):  # the replayed answer is prose
        client.chat("x", **given)
    assert calls(wire)[0].body["response_format"] == {"type": "json_object", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("server", "tokens"),
    [("llama-server", [("L", 60), ("'", 23)]), ("llama-cpp-python", [("The", None), (" capital", None)])],
)
@pytest.mark.parametrize("top", [0, 2])
def test_chat_logprobs(start, server, tokens, top):
    wire, client = start(server, {CHAT: "chat_logprobs.json"})
    with client:
        (choice,) = client.chat("x", logprobs=True, top_logprobs=top).choices
    assert [(t.token, t.token_id) for t in choice.logprobs.content] == tokens
    assert [len(t.top_logprobs) for t in choice.logprobs.content] == [top, top]
    # 0 would turn them off in llama-server.
    wanted = max(top, 1) if server == "llama-server" else top
    assert calls(wire)[0].body["top_logprobs"] == wanted


@pytest.mark.parametrize(("server", "field"), [("llama-server", "n_probs"), ("llama-cpp-python", "logprobs")])
def test_completion_logprobs(start, server, field):
    wire, client = start(server, {COMPLETION: "completion_logprobs.json"})
    with client:
        (choice,) = client.complete("x", logprobs=2).choices
    body = calls(wire)[0].body
    assert (body[field], "logprobs" in body) == (2, field == "logprobs")
    assert [t.token for t in choice.logprobs.content] == [" Paris", "."]
    assert [t.token for t in choice.logprobs.content[0].top_logprobs] == [" Paris", " the"]
    assert choice.logprobs.content[0].logprob == pytest.approx(-0.25, abs=0.02)


@pytest.mark.parametrize("server", list(WHO))
def test_streams(start, server):
    wire, client = start(
        server, {CHAT: "chat_stream_logprobs.sse", COMPLETION: "completion_stream_logprobs.sse"}
    )
    with client:
        with client.stream_chat("x", logprobs=True, top_logprobs=1) as stream:
            chat = stream.final()
        with client.stream_complete("x", logprobs=1) as stream:
            completion = stream.final()
    assert all(seen.body["stream"] for seen in calls(wire))
    assert chat.text in ("L'", "The capital")
    assert (completion.text, completion.choices[0].finish_reason) == (" Paris.", "length")
    for answer in (chat, completion):
        assert "".join(t.token for t in answer.choices[0].logprobs.content) == answer.text
        assert [len(t.top_logprobs) for t in answer.choices[0].logprobs.content] == [1, 1]


def test_tool_calls_of_llama_cpp_python(start):
    _, client = start("llama-cpp-python", {CHAT: "chat_tools_forced.json"})
    with client:
        answer = client.chat("x", tools=TOOLS, tool_choice=NAMED)
    (call,) = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})


def test_streamed_tool_calls_of_llama_cpp_python(start):
    _, client = start("llama-cpp-python", {CHAT: "chat_stream_tools_forced.sse"})
    with client, client.stream_chat("x", tools=TOOLS, tool_choice=NAMED) as stream:
        answer = stream.final()
    (call,) = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("server", list(WHO))
def test_n_answers_are_n_requests_with_a_seed_each(start, server):
    wire, client = start(server, {CHAT: "chat.json"})
    with client:
        answer = client.chat("x", n=3, seed=7)
        with pytest.raises(UnsupportedFeatureError, match="one stream for each"):
            client.stream_chat("x", n=2).__enter__()
    assert [seen.body["seed"] for seen in calls(wire)] == [7, 8, 9]
    assert all("n" not in seen.body for seen in calls(wire))
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 36)
    assert len(answer.raw) == 3


@pytest.mark.parametrize("server", list(WHO))
def test_a_context_overflow(start, server):
    _, client = start(server, {CHAT: (400, "err_context_chat.json")})
    with client, pytest.raises(ContextLengthError) as caught:
        client.chat("x")
    assert caught.value.limit == 2048
