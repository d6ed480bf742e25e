"""Ollama's own API, against its documented answers."""

from __future__ import annotations

import json

import pytest

from myllm import Client, InvalidParameterError, NotFoundError, ServerError, UnsupportedFeatureError
from myllm.dialects.ollama import native_messages

CHAT, GENERATE = "/api/chat", "/api/generate"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}]
WHO = {"/v1/models": "ollama/models.json", "/api/version": "ollama/version.json"}


@pytest.fixture
def start(replay):
    def begin(answers, **options):
        wire = replay(
            {
                **WHO,
                **{
                    k: (v[0], f"ollama/{v[1]}") if isinstance(v, tuple) else f"ollama/{v}"
                    for k, v in answers.items()
                },
            }
        )
        return wire, Client(
            wire.url, **{"model": "llama3.2", "dialect": "ollama", "max_retries": 0, **options}
        )

    return begin


def test_options_are_named_its_way(start):
    wire, client = start({CHAT: "chat.json"})
    with client:
        answer = client.chat("Hi", max_tokens=9, temperature=0.0, top_k=-1, min_p=0.1, repetition_penalty=1.1,
                             seed=3, stop="x", frequency_penalty=0.5, user="ada",
                             extra_body={"options": {"num_ctx": 8192}, "keep_alive": "1h"})  # fmt: skip
    assert wire.bodies == [
        {
            "model": "llama3.2",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": False,
            "user": "ada",
            "keep_alive": "1h",
            "options": {
                "num_predict": 9, "temperature": 0.0, "top_k": 0, "min_p": 0.1, "repeat_penalty": 1.1, "seed": 3,
                "stop": ["x"], "frequency_penalty": 0.5, "num_ctx": 8192,
            },
        }
    ]  # fmt: skip
    assert (answer.text, answer.choices[0].finish_reason) == ("Hello! How are you today?", "stop")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.created) == (
        26,
        298,
        1702390423,
    )


def test_a_prompt_goes_to_the_model_as_it_is(start):
    wire, client = start({GENERATE: "generate.json"})
    with client:
        assert client.complete("The capital of France is").text == " Paris."
        client.complete("def f(", suffix="return 1")
    first, second = wire.bodies
    assert (first["raw"], first["prompt"], first["think"]) == (True, "The capital of France is", False)
    assert ("raw" not in second, second["suffix"]) == (True, "return 1")


@pytest.mark.parametrize(
    "given",
    [{"logit_bias": {1: 1.0}}, {"min_tokens": 2}, {"stop_token_ids": [1]}, {"regex": "a"}, {"choice": ["a"]},
     {"grammar": "a"}, {"max_tokens": 0}, {"parallel_tool_calls": False}, {"chat_template_kwargs": {"a": 1}},
     {"mirostat": 1}, {"best_of": 2}],
)  # fmt: skip
def test_what_it_has_no_word_for_is_refused(start, given):
    wire, client = start({})
    with client, pytest.raises(UnsupportedFeatureError, match=f"`{next(iter(given))}="):
        client.chat("x", **given)
    assert wire.seen == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_the_model_chooses_its_tools(start, choice):
    _, client = start({})
    with client, pytest.raises(UnsupportedFeatureError, match="tool_choice"):
        client.chat("x", tools=TOOLS, tool_choice=choice)


def test_no_token_ids_for_a_prompt(start):
    _, client = start({})
    with client, pytest.raises(UnsupportedFeatureError, match="text only"):
        client.complete([1, 2])


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"json_schema": SCHEMA}, SCHEMA),
        ({"response_format": {"type": "json_object"}}, "json"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
            SCHEMA,
        ),
    ],
)
def test_format(wire, recorded, given, sent):
    answer = json.loads(recorded("ollama/chat.json"))
    answer["message"]["content"] = '{"city": "Paris"}'
    bodies = {CHAT: answer, **{path: json.loads(recorded(name)) for path, name in WHO.items()}}
    wire.handler = lambda seen, reply: reply.json(bodies[seen.path])
    with Client(wire.url, model="m", dialect="ollama") as client:
        client.chat("x", **given)
    assert wire.bodies[-1]["format"] == sent


@pytest.mark.parametrize(
    ("given", "since"),
    [
        ({"logprobs": True}, "0.12.11"),
        ({"reasoning_effort": "low"}, "0.9.0"),
        ({"json_schema": SCHEMA}, "0.5.0"),
    ],
)
def test_what_an_old_version_would_ignore_is_refused(wire, recorded, given, since):
    bodies = {"/v1/models": json.loads(recorded("ollama/models.json")), "/api/version": {"version": "0.4.7"}}
    wire.handler = lambda seen, reply: reply.json(bodies[seen.path])
    with Client(wire.url, model="m", dialect="ollama", max_retries=0) as client:
        with pytest.raises(
            UnsupportedFeatureError, match=f"Ollama 0.4.7 ignores it.*Ollama {since} and later"
        ):
            client.chat("x", **given)
    assert [seen.method for seen in wire.seen] == ["GET", "GET"]


@pytest.mark.parametrize(("effort", "think"), [("none", False), ("low", "low")])
def test_thinking_and_logprobs_are_read(start, effort, think):
    wire, client = start({CHAT: "chat_thinking.json"})
    with client:
        (choice,) = client.chat("x", reasoning_effort=effort, logprobs=True, top_logprobs=2).choices
    body = wire.bodies[-1]
    assert (body["think"], body["logprobs"], body["top_logprobs"]) == (think, True, 2)
    assert (choice.message.reasoning, choice.message.content) == ("Compare the decimals.", "9.11 is smaller.")
    assert choice.finish_reason == "length"
    (token,) = choice.logprobs.content
    assert (token.token, token.bytes, [t.token for t in token.top_logprobs]) == ("9", [57], ["9", "The"])


def test_tool_calls_come_in_openai_s_shape(start):
    wire, client = start({CHAT: "chat_tools.json"})
    with client:
        (choice,) = client.chat("x", tools=TOOLS).choices
        client.chat("x", tools=TOOLS, tool_choice="none")
    assert wire.bodies[0]["tools"] == TOOLS
    assert "tools" not in wire.bodies[1], "without tools none can be called"
    first, second = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (first.function.name, first.function.arguments) == ("get_weather", '{"city": "Tokyo"}')
    assert (second.id, second.index, second.function.arguments) == ("call_7", 1, '{"city": "Zürich"}')
    assert first.id.startswith("call_")


def test_messages_go_in_its_own_shape():
    call = {
        "id": "call_7",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }
    assert native_messages(
        [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}},
                    {"type": "text", "text": "is this?"},
                ],
            },
            {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_7", "content": "sunny"},
        ]
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What\nis this?", "images": ["iVBORw0="]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [
                {"id": "call_7", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_7", "content": "sunny", "tool_name": "get_weather"},
    ]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}]},
         UnsupportedFeatureError),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, UnsupportedFeatureError),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]},
         InvalidParameterError),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
         InvalidParameterError),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, InvalidParameterError),
        ({"role": "assistant", "tool_calls": ["f"]}, InvalidParameterError),
        ({"role": "user", "content": ["text"]}, InvalidParameterError),
        ({"role": "user", "content": [{"type": "text"}]}, InvalidParameterError),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, InvalidParameterError),
    ],
)  # fmt: skip
def test_messages_it_has_no_place_for(message, error):
    with pytest.raises(error):
        native_messages([message])


def test_one_of_several_users_is_named_in_the_text():
    (message,) = native_messages([{"role": "user", "name": "Ann", "content": "Hi"}])
    assert message == {"role": "user", "content": "Ann: Hi"}


def test_a_stream_is_read_line_by_line(start):
    wire, client = start({CHAT: "chat_stream.ndjson", GENERATE: "generate_stream.ndjson"})
    with client:
        with client.stream_chat("x") as stream:
            assert [chunk.text for chunk in stream] == ["", "The", " sky", ""]
            chat = stream.final()
        with client.stream_complete("x") as stream:
            completion = stream.final()
    assert [body["stream"] for body in wire.bodies] == [True, True]
    assert (chat.message.reasoning, chat.text, chat.usage.total_tokens) == ("Let me see.", "The sky", 324)
    assert (completion.text, completion.choices[0].finish_reason) == ("That's!", "length")


def test_a_streamed_tool_call(start):
    _, client = start({CHAT: "chat_stream_tools.ndjson"})
    with client, client.stream_chat("x", tools=TOOLS) as stream:
        answer = stream.final()
    assert answer.message.tool_calls[0].function.arguments == '{"city": "Tokyo"}'
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_stream_that_ends_in_an_error(start):
    _, client = start({GENERATE: "generate_stream_error.ndjson"})
    with (
        client,
        client.stream_complete("x") as stream,
        pytest.raises(ServerError, match="running the model") as caught,
    ):
        stream.final()
    assert caught.value.partial.text == " Yes"


def test_n_answers_are_n_requests(start):
    wire, client = start({GENERATE: "generate.json"})
    with client:
        assert len(client.complete("x", n=2, seed=5).choices) == 2
    assert [body["options"]["seed"] for body in wire.bodies] == [5, 6]


def test_an_unknown_model(start):
    _, client = start({CHAT: (404, "error.json")})
    with client, pytest.raises(NotFoundError, match="model 'nope' not found"):
        client.chat("x")
