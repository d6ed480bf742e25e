"""SGLang's words, against its documented request and answer types."""

from __future__ import annotations

import json

import pytest

from myllm import Client, ContextLengthError, UnsupportedFeatureError

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


@pytest.fixture
def client(replay):
    replay({CHAT: "sglang/chat.json", COMPLETION: "sglang/completion.json"})

    def start(wire):
        return Client(wire.url, model="m", dialect="sglang", max_retries=0)

    return start


def test_its_own_words(wire, client):
    with client(wire) as c:
        c.chat("x", include_stop_str_in_output=True, top_k=0, min_p=0.1, min_tokens=2, stop_token_ids=[5],
               ignore_eos=True, skip_special_tokens=False, repetition_penalty=1.2, seed=3, n=2,
               chat_template_kwargs={"enable_thinking": False}, logprobs=True, top_logprobs=2)  # fmt: skip
    body = wire.bodies[0]
    assert body.pop("messages") == [{"role": "user", "content": "x"}]
    assert body == {
        "model": "m", "no_stop_trim": True, "top_k": -1, "min_p": 0.1, "min_tokens": 2, "stop_token_ids": [5],
        "ignore_eos": True, "skip_special_tokens": False, "repetition_penalty": 1.2, "seed": 3, "n": 2,
        "chat_template_kwargs": {"enable_thinking": False}, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"regex": "[A-Z][a-z]+\\."}, {"regex": "[A-Z][a-z]+\\."}),
        ({"grammar": 'root ::= "Paris."'}, {"ebnf": 'root ::= "Paris."'}),
        (
            {"choice": ["Paris.", " Paris.", 'a "b"\\\n']},
            {"ebnf": 'root ::= "Paris." | " Paris." | "a \\"b\\"\\\\\\n"'},
        ),
        ({"response_format": {"type": "text"}}, {"response_format": {"type": "text"}}),
    ],
)
def test_constraints(wire, client, given, sent):
    with client(wire) as c:
        c.chat("x", **given)
        c.complete("x", **given)
    for body in wire.bodies:
        assert sent.items() <= body.items()
        assert not {"choice", "grammar", "structured_outputs", "guided_regex"} & set(body)


def test_a_schema_is_a_response_format_in_a_chat_and_json_text_in_a_completion(wire, client, recorded):
    bodies = [json.loads(recorded("sglang/chat.json")), json.loads(recorded("sglang/completion.json"))]
    bodies[0]["choices"][0]["message"]["content"] = bodies[1]["choices"][0]["text"] = '{"city": "Paris"}'
    wire.answers(*bodies)
    with Client(wire.url, model="m", dialect="sglang") as c:
        c.chat("x", json_schema=SCHEMA)
        c.complete("x", json_schema=SCHEMA)
    chat, completion = wire.bodies
    assert chat["response_format"]["json_schema"]["schema"] == SCHEMA
    assert json.loads(completion["json_schema"]) == SCHEMA
    assert "response_format" not in completion


@pytest.mark.parametrize(
    ("kind", "given"),
    [("chat", {"typical_p": 0.5}), ("chat", {"bad_words": ["a"]}), ("chat", {"priority": 1}),
     ("completion", {"best_of": 3}), ("completion", {"suffix": "b"}), ("completion", {"truncate_prompt_tokens": 5})],
)  # fmt: skip
def test_what_it_ignores_is_refused(wire, client, kind, given):
    with client(wire) as c, pytest.raises(UnsupportedFeatureError, match=next(iter(given))):
        c.chat("x", **given) if kind == "chat" else c.complete("x", **given)
    assert wire.seen == []


def test_reasoning_logprobs_and_the_stop_are_read(wire, client):
    with client(wire) as c:
        answer = c.chat("x", stop="###", logprobs=True, top_logprobs=2)
    choice = answer.choices[0]
    assert (choice.message.reasoning, choice.message.content) == ("France's capital.", "Paris.")
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "###")
    (token,) = choice.logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("Paris", -0.1, [80, 97, 114, 105, 115])
    assert [(t.token, t.logprob) for t in token.top_logprobs] == [("Paris", -0.1), ("The", -2.5)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (12, 3)


def test_the_end_of_text_token_is_no_stop_unless_it_was_asked_for(replay):
    wire = replay({CHAT: "sglang/chat_eos.json"})
    with Client(wire.url, model="m", dialect="sglang") as c:
        assert c.chat("x").choices[0].stop_reason is None
        assert c.chat("x", stop_token_ids=[128009]).choices[0].stop_reason == 128009


def test_completion_logprobs(wire, client):
    with client(wire) as c:
        (choice,) = c.complete("x", logprobs=2).choices
    assert wire.bodies[0]["logprobs"] == 2
    assert [(t.token, t.logprob, len(t.top_logprobs)) for t in choice.logprobs.content] == [
        (" Paris", -0.2, 2),
        (".", -0.4, 1),
    ]


def test_tool_calls(replay):
    wire = replay({CHAT: "sglang/chat_tools.json"})
    with Client(wire.url, model="m", dialect="sglang") as c:
        message = c.chat("x", tools=[{"type": "function", "function": {"name": "get_weather"}}]).message
    assert message.tool_calls[0].function.arguments == '{"city": "Paris"}'


def test_a_stream(replay):
    wire = replay({CHAT: "sglang/chat_stream.sse"})
    with Client(wire.url, model="m", dialect="sglang") as c, c.stream_chat("x") as stream:
        assert "".join(chunk.text for chunk in stream) == "Paris."
        final = stream.final()
    assert (final.message.reasoning, final.choices[0].finish_reason) == ("France's capital.", "stop")
    assert (final.choices[0].stop_reason, final.usage.total_tokens) == (None, 15)


def test_its_flat_error_is_understood(replay):
    wire = replay({CHAT: (400, "sglang/error.json")})
    with Client(wire.url, model="m", dialect="sglang") as c, pytest.raises(ContextLengthError) as caught:
        c.chat("x")
    assert "longer than the model's context length" in caught.value.server_message
