"""What goes onto the wire, and what comes off it, against the documented formats."""

from __future__ import annotations

import json
import re
import time
import uuid

import pytest

from myllm import Client, InvalidParameterError, InvalidResponseError, UnsupportedFeatureError
from myllm.dialects import DONE, get_dialect
from myllm.params import build
from myllm.wire import Call, ServerInfo

CHAT = {
    "id": "c",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}
TEXT = {"id": "t", "model": "m", "choices": [{"index": 0, "text": "Hi", "finish_reason": "length"}]}


def test_unknown_dialect_lists_the_known():
    with pytest.raises(InvalidParameterError, match="'vllm'"):
        get_dialect("vlm")


def test_openai_chat_body(wire):
    wire.answers(CHAT)
    with Client(wire.url, model="m", dialect="openai", temperature=0.0) as client:
        answer = client.chat("Hello", max_completion_tokens=3, stop="x", logprobs=True, top_logprobs=2)
    assert wire.seen[0].path == "/v1/chat/completions"
    assert wire.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 3,
            "temperature": 0.0,
            "stop": ["x"],
            "logprobs": True,
            "top_logprobs": 2,
        }
    ]
    assert (answer.text, answer.choices[0].finish_reason, answer.raw) == ("Hi", "stop", CHAT)


def test_a_neutral_value_is_sent_where_the_server_knows_the_name(wire):
    """The server's own default may be another (generation_config.json)."""
    wire.answers(TEXT)
    with Client(wire.url, dialect="vllm", model="m") as client:
        client.complete("x", top_p=1.0, top_k=0, repetition_penalty=1.0)
    assert wire.bodies[0] == {
        "model": "m",
        "prompt": "x",
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
    }


def test_a_parameter_without_a_word_is_refused_and_nothing_is_sent(wire):
    with Client(wire.url, model="m", dialect="openai") as client:
        with pytest.raises(UnsupportedFeatureError, match="`min_p=0.1`"):
            client.chat("x", min_p=0.1)
        wire.answers(CHAT)
        client.chat("x", min_p=0)  # says nothing, so there is nothing to refuse
    assert wire.bodies == [{"model": "m", "messages": [{"role": "user", "content": "x"}]}]


def test_extra_body_and_headers_go_as_they_are(wire):
    wire.answers(CHAT)
    with Client(wire.url, dialect="vllm", model="m", api_key="k", headers={"X-A": "1"}) as client:
        client.chat("x", extra_body={"vllm_xargs": {"a": 1}}, extra_headers={"X-B": "2"})
    assert wire.bodies[0]["vllm_xargs"] == {"a": 1}
    headers = wire.seen[0].headers
    assert (headers["x-a"], headers["x-b"], headers["authorization"]) == ("1", "2", "Bearer k")
    assert uuid.UUID(headers["x-request-id"])


def test_completion_logprobs_take_the_chat_s_shape(wire):
    wire.answers(
        {**TEXT, "choices": [{"index": 0, "text": "Hi!", "finish_reason": "stop", "logprobs": {
            "text_offset": [0, 2], "tokens": ["Hi", "!"], "token_logprobs": [-0.1, -0.2],
            "top_logprobs": [{"Hi": -0.1, "Ho": -3.0}, {"!": -0.2}]}}]}
    )  # fmt: skip
    with Client(wire.url, dialect="vllm", model="m") as client:
        logprobs = client.complete("x", logprobs=2).choices[0].logprobs
    assert wire.bodies[0]["logprobs"] == 2
    assert [(t.token, t.logprob) for t in logprobs.content] == [("Hi", -0.1), ("!", -0.2)]
    assert [(t.token, t.logprob) for t in logprobs.content[0].top_logprobs] == [("Hi", -0.1), ("Ho", -3.0)]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_both_names(wire, name):
    body = json.loads(json.dumps(CHAT))
    body["choices"][0]["message"][name] = "because"
    wire.answers(body)
    with Client(wire.url, dialect="vllm", model="m") as client:
        assert client.chat("x").message.reasoning == "because"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"choices": []}', "no `choices`"),
        (b'{"choices": [{"index": "a"}]}', "not OpenAI's"),
    ],
)
def test_garbage_is_called_garbage(wire, body, words):
    wire.handler = lambda seen, reply: reply.raw(body)
    with Client(wire.url, dialect="vllm", model="m") as client, pytest.raises(InvalidResponseError) as caught:
        client.chat("x")
    assert words in str(caught.value)
    assert caught.value.endpoint == wire.url


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("vllm", {"choices": 5}),
        (
            "vllm",
            {
                "choices": [
                    {"index": 0, "text": "a", "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0]}}
                ]
            },
        ),
        ("tgi", {"generated_text": "a", "details": {"generated_tokens": 1, "tokens": [{"text": "a"}]}}),
        (
            "tgi",
            {
                "generated_text": "a",
                "details": {"generated_tokens": 1, "tokens": [{"id": 1, "text": "a", "logprob": None}]},
            },
        ),
    ],
)
def test_whatever_reading_stumbles_over_is_a_bad_answer(wire, dialect, body):
    wire.answers(body)
    with (
        Client(wire.url, model="m", dialect=dialect) as client,
        pytest.raises(InvalidResponseError) as caught,
    ):
        client.complete("x", logprobs=1)
    assert caught.value.endpoint == wire.url


# --- constraints -------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "title": "A person!", "properties": {"a": {"type": "integer"}}}


def sent(dialect: str, kind: str = "chat", version=None, limits=None, stream: bool = False, **params):
    """The bodies that a dialect sends to a server of this version and these limits."""
    call = Call(
        kind=kind, model="m", params=build(params), stream=stream,
        prompt="p" if kind == "completion" else None,
        messages=[{"role": "user", "content": "p"}] if kind == "chat" else None,
    )  # fmt: skip
    server = ServerInfo(dialect=dialect, version=version, limits=limits or {})
    return [request.json for request in get_dialect(dialect).requests(call, server)]


def depends(dialect: str, kind: str = "chat", stream: bool = False, **params) -> bool:
    return get_dialect(dialect).depends_on_server(
        Call(kind=kind, model="m", params=build(params), stream=stream)
    )


CONSTRAINTS = {
    "json_schema": ("json", SCHEMA),
    "regex": ("regex", "[a-z]+"),
    "choice": ("choice", ["yes", "no"]),
    "grammar": ("grammar", 'root ::= "a"'),
}
OPENAI_FORMAT = {
    "type": "json_schema", "json_schema": {"name": "A_person_", "strict": True, "schema": SCHEMA}
}  # fmt: skip


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("name", CONSTRAINTS)
def test_vllm_spells_constraints_by_version(kind, name):
    """`guided_*` until 0.11, `structured_outputs` since 0.12 (vllm#22772, vllm#29326, vllm#53975)."""
    word, value = CONSTRAINTS[name]
    for version in ((0, 6, 3), (0, 10, 2), (0, 11, 2)):
        (body,) = sent("vllm", kind, version, **{name: value})
        assert body[f"guided_{word}"] == value
        assert "structured_outputs" not in body
    for version in ((0, 12, 0), (0, 32, 0), (1, 0)):
        (body,) = sent("vllm", kind, version, **{name: value})
        assert body["structured_outputs"] == {word: value}
        assert not any(field.startswith("guided_") for field in body)
    assert depends("vllm", kind, **{name: value})


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_vllm_of_unknown_version_gets_the_spelling_that_most_obey(name):
    word, value = CONSTRAINTS[name]
    (chat,) = sent("vllm", "chat", None, **{name: value})
    (completion,) = sent("vllm", "completion", None, **{name: value})
    if name == "json_schema":
        assert chat["response_format"] == OPENAI_FORMAT
    else:
        assert chat["structured_outputs"] == {word: value}
    assert completion["structured_outputs"] == {word: value}


def test_openai_knows_json_schema_in_chats_alone():
    (body,) = sent("openai", json_schema=SCHEMA)
    assert body["response_format"] == OPENAI_FORMAT
    for name in ("regex", "choice", "grammar"):
        with pytest.raises(UnsupportedFeatureError, match=f"`{name}="):
            sent("openai", **{name: CONSTRAINTS[name][1]})
    for name, (_, value) in CONSTRAINTS.items():
        with pytest.raises(UnsupportedFeatureError):
            sent("openai", "completion", **{name: value})


@pytest.mark.parametrize(
    ("params", "grammar"),
    [
        ({"json_schema": SCHEMA}, {"type": "json", "value": SCHEMA}),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}, {"type": "json", "value": SCHEMA}),
        ({"regex": r"\d+"}, {"type": "regex", "value": r"\d+"}),
        ({"choice": ["a b", "c.d (e)?", "f\\g"]}, {"type": "regex", "value": r"(a b|c\.d \(e\)\?|f\\g)"}),
        ({"response_format": {"type": "text"}}, None),
    ],
)  # fmt: skip
def test_tgi_takes_its_grammar_on_both_routes(params, grammar):
    """`GrammarType` in TGI's `router/src/lib.rs` is the type of `grammar` and of the chat's `response_format`."""
    (body,) = sent("tgi", "completion", **params)
    assert body["parameters"].get("grammar") == grammar
    (body,) = sent("tgi", "chat", **params)
    assert body.get("response_format") == grammar
    if "choice" in params:
        assert all(re.fullmatch(grammar["value"], choice) for choice in params["choice"])
        assert not re.fullmatch(grammar["value"], "cxd e")


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize(
    "params",
    [
        {"grammar": "g"},
        {"json_schema": {"type": "array"}},  # "Grammar must have a 'properties' field" (validation.rs)
        {"response_format": {"type": "json_object"}},
    ],
)
def test_tgi_has_no_grammar_for(kind, params):
    with pytest.raises(UnsupportedFeatureError):
        sent("tgi", kind, **params)


def test_most_calls_need_not_know_the_server():
    everyday = {"temperature": 0.0, "max_tokens": 5, "stop": ["a"], "seed": 1, "n": 2}
    for dialect in ("vllm", "tgi", "openai"):
        for kind in ("chat", "completion"):
            assert not depends(dialect, kind, **everyday)
    assert not depends("openai", json_schema=SCHEMA)


def test_vllm_s_own_parameters_go_as_they_are():
    shared = {
        "bad_words": ["x"], "allowed_token_ids": [1, 2], "use_beam_search": True, "length_penalty": 0.5,
        "prompt_logprobs": 2, "spaces_between_special_tokens": False, "priority": -1, "add_special_tokens": False,
        "min_p": 0.1, "stop_token_ids": [3],
    }  # fmt: skip
    template = {
        "add_generation_prompt": False, "continue_final_message": True, "chat_template": "{{ x }}",
        "documents": [{"text": "d"}],
    }  # fmt: skip
    (body,) = sent("vllm", "chat", **shared, **template)
    assert all(body[k] == v for k, v in (shared | template).items())
    (body,) = sent("vllm", "completion", **shared)
    assert all(body[k] == v for k, v in shared.items())
    for name, value in template.items():
        with pytest.raises(UnsupportedFeatureError, match=f"`{name}="):
            sent("vllm", "completion", **{name: value})


def test_vllm_s_best_of_ended_with_its_first_engine():
    """V1 refuses or ignores it, and 0.11 has no other engine (vllm#13361)."""
    assert depends("vllm", "completion", best_of=3)
    assert not depends("vllm", "completion", best_of=3, n=3)
    (body,) = sent("vllm", "completion", (0, 6, 3), best_of=3)
    assert body["best_of"] == 3
    for version in (None, (0, 11, 0), (0, 32, 0)):
        with pytest.raises(UnsupportedFeatureError, match="best_of"):
            sent("vllm", "completion", version, best_of=3)
        (body,) = sent("vllm", "completion", version, best_of=3, n=3)
        assert "best_of" not in body
        assert body["n"] == 3


def test_myllm_serve_takes_best_of():
    call = Call(kind="completion", model="m", params=build({"best_of": 3}), prompt="p")
    info = ServerInfo(dialect="vllm", product="myllm serve", features=frozenset({"best_of"}))
    (request,) = get_dialect("vllm").requests(call, info)
    assert request.json["best_of"] == 3


# --- TGI ---------------------------------------------------------------------------------------------------


def tgi(text: str, reason: str = "length", **details):
    return {"generated_text": text, "details": {"finish_reason": reason, "generated_tokens": 2, **details}}


def tgi_parameters(wire, **params):
    wire.answers(tgi("x"))
    with Client(wire.url, dialect="tgi") as client:
        client.complete("p", **params)
    body = wire.bodies[-1]
    assert wire.seen[-1].path == "/generate"
    assert body["inputs"] == "p"
    assert body["parameters"].pop("details") is True
    return body["parameters"]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"max_tokens": 3}, {"max_new_tokens": 3, "do_sample": False}),
        ({"temperature": 0, "top_p": 0.9, "top_k": 5, "typical_p": 0.5}, {"do_sample": False}),
        ({"temperature": 0.7, "top_p": 1.0}, {"temperature": 0.7, "do_sample": True}),
        ({"top_k": 5, "seed": 1}, {"top_k": 5, "seed": 1, "do_sample": True}),
        ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5, "do_sample": False}),
        ({"stop": ["a"], "truncate_prompt_tokens": 9}, {"stop": ["a"], "truncate": 9, "do_sample": False}),
        ({"logprobs": 2}, {"top_n_tokens": 2, "do_sample": False}),
        ({"n": 2, "temperature": 1}, {"best_of": 2, "temperature": 1, "do_sample": True}),
        ({"presence_penalty": 0, "min_p": 0, "skip_special_tokens": True}, {"do_sample": False}),
    ],
)
def test_tgi_parameters(wire, params, expected):
    assert tgi_parameters(wire, **params) == expected


@pytest.mark.parametrize("params", [{"presence_penalty": 0.5}, {"logit_bias": {1: 2}}, {"min_tokens": 3}])
def test_tgi_has_no_word_for(wire, params):
    with Client(wire.url, dialect="tgi") as client, pytest.raises(UnsupportedFeatureError):
        client.complete("p", **params)
    assert wire.seen == []


def test_tgi_more_sequences_than_best_of_are_requests_with_seeds_of_their_own(wire):
    wire.answers(tgi("a"), tgi("b"), tgi("c"))
    with Client(wire.url, dialect="tgi") as client:
        answer = client.complete("p", n=3, temperature=1, seed=10)
    assert [body["parameters"]["seed"] for body in wire.bodies] == [10, 11, 12]
    assert [choice.text for choice in answer.choices] == ["a", "b", "c"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 6
    assert len(answer.raw) == 3


def test_tgi_best_of_sequences_are_choices(wire):
    other = {"generated_text": "b", "finish_reason": "eos_token", "generated_tokens": 1}
    wire.answers(tgi("a", best_of_sequences=[other]))
    with Client(wire.url, dialect="tgi") as client:
        answer = client.complete("p", n=2, temperature=1)
    assert [(c.text, c.finish_reason) for c in answer.choices] == [("a", "length"), ("b", "stop")]


def test_tgi_stop_text_is_cut_off_unless_wanted(wire):
    wire.answers(tgi(" Paris\n", "stop_sequence"))
    with Client(wire.url, dialect="tgi", stop=["\n"]) as client:
        cut = client.complete("p").choices[0]
        kept = client.complete("p", include_stop_str_in_output=True).choices[0]
    assert (cut.text, cut.finish_reason, cut.stop_reason) == (" Paris", "stop", "\n")
    assert (kept.text, kept.finish_reason) == (" Paris\n", "stop")


def test_tgi_tokens_are_logprobs(wire):
    wire.answers(
        tgi("Hi", tokens=[{"id": 7, "text": "Hi", "logprob": -0.5, "special": False}], top_tokens=[[{"id": 7, "text": "Hi", "logprob": -0.5}, {"id": 8, "text": "Ho", "logprob": -2.0}]])
    )  # fmt: skip
    with Client(wire.url, dialect="tgi") as client:
        (token,) = client.complete("p", logprobs=2).choices[0].logprobs.content
    assert (token.token, token.token_id, token.logprob) == ("Hi", 7, -0.5)
    assert [(t.token, t.token_id) for t in token.top_logprobs] == [("Hi", 7), ("Ho", 8)]


def tgi_event(text: str, final: str | None = None, reason: str | None = None, special: bool = False) -> bytes:
    details = {"finish_reason": reason, "generated_tokens": 4, "input_length": 9} if reason else None
    token = {"id": 1, "text": text, "logprob": -0.1, "special": special}
    return json.dumps({"index": 1, "token": token, "generated_text": final, "details": details}).encode()


def test_tgi_stream_never_shows_the_stop_text():
    call = Call(kind="completion", model=None, prompt="p", params=build({"stop": ["END"]}), stream=True)
    reader = get_dialect("tgi").reader(call)
    texts = []
    for event in (tgi_event("one "), tgi_event("E"), tgi_event("ND", "one END", "stop_sequence")):
        chunk = reader.read(event)
        assert chunk is not DONE
        texts.append(chunk.text)
    assert "".join(texts) == "one "
    assert "E" not in "".join(texts[:2])
    assert chunk.choices[0].finish_reason == "stop"
    assert chunk.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 9,
        "completion_tokens": 4,
        "total_tokens": 13,
    }
    assert reader.complete


def test_tgi_stream_special_tokens_are_no_text():
    call = Call(kind="completion", model=None, prompt="p", params=build({}), stream=True)
    reader = get_dialect("tgi").reader(call)
    assert reader.read(tgi_event("Hi")).text == "Hi"
    last = reader.read(tgi_event("<eos>", "Hi", "eos_token", special=True))
    assert (last.text, last.choices[0].finish_reason) == ("", "stop")


def test_tgi_s_own_limits_count():
    assert depends("tgi", "completion", n=3, temperature=1)
    assert [b["parameters"].get("best_of") for b in sent("tgi", "completion", n=3, temperature=1.0)] == [
        None
    ] * 3
    (body,) = sent("tgi", "completion", limits={"max_best_of": 4}, n=3, temperature=1.0)
    assert body["parameters"]["best_of"] == 3
    stops = list("abcdef")
    assert depends("tgi", "chat", stop=stops)
    assert sent("tgi", "completion", stop=stops)[0]["parameters"]["stop"] == stops[:4]
    assert sent("tgi", "chat", stop=stops)[0]["stop"] == stops[:4]
    assert sent("tgi", "chat", limits={"max_stop_sequences": 5}, stop=stops)[0]["stop"] == stops[:5]


def test_tgi_stop_strings_beyond_the_limit_are_looked_for_here(wire):
    stops = ["1", "2", "3", "4", "END", "EN"]

    def handler(seen, reply):
        if seen.path == "/info":
            reply.json({"max_stop_sequences": 4, "version": "3.3.6"})
        elif seen.path == "/generate":
            reply.json(tgi("one END two", "length"))
        elif seen.body.get("stream"):
            reply.start_stream()
            for piece in ("one ", "E", "ND two"):
                chunk = {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
                reply.piece(f"data: {json.dumps(chunk)}\n\n")
            time.sleep(2)
        else:
            message = {"role": "assistant", "content": "one END two"}
            reply.json({"choices": [{"index": 0, "message": message, "finish_reason": "eos_token"}]})

    wire.handler = handler
    with Client(wire.url, dialect="tgi", stop=stops) as client:
        texts = [client.complete("p").choices[0], client.chat("p").choices[0]]
        start = time.monotonic()
        with client.stream_chat("p") as stream:
            pieces = [chunk.text for chunk in stream]
            texts.append(stream.final().choices[0])
    assert time.monotonic() - start < 1.5
    assert "".join(pieces) == "one "
    for choice in texts:
        text = choice.text if hasattr(choice, "text") else choice.message.content
        assert (text, choice.finish_reason, choice.stop_reason) == ("one ", "stop", "END")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("eos_token", "stop"), ("length", "length"), ("stop", "stop"), ("tool_calls", "tool_calls")],
)
def test_tgi_chat_finish_reasons_are_openai_s(wire, theirs, ours):
    message = {"role": "assistant", "content": "Hi"}
    wire.answers({"choices": [{"index": 0, "message": message, "finish_reason": theirs}]})
    with Client(wire.url, dialect="tgi") as client:
        assert client.chat("p").choices[0].finish_reason == ours


def test_tgi_stream_ends_with_its_last_token(wire):
    def handler(seen, reply):
        reply.start_stream()
        reply.piece(b"data:" + tgi_event("Hi", "Hi", "length") + b"\n\n")
        time.sleep(3)

    wire.handler = handler
    start = time.monotonic()
    with Client(wire.url, dialect="tgi") as client, client.stream_complete("p") as stream:
        assert stream.final().text == "Hi"
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_tgi_at_temperature_0_gets_nothing_that_makes_it_sample(kind):
    (body,) = sent("tgi", kind, temperature=0, top_p=0.9)
    said = body if kind == "chat" else body["parameters"]
    assert "top_p" not in said
    assert said.get("temperature", 0) == 0
    (body,) = sent("tgi", kind, temperature=0.5, top_p=1)
    assert "top_p" not in (body if kind == "chat" else body["parameters"])
    (body,) = sent("tgi", kind, temperature=0.5, top_p=0.9)
    assert (body if kind == "chat" else body["parameters"])["top_p"] == 0.9


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_tgi_s_seeds_have_no_sign(kind):
    bodies = sent("tgi", kind, seed=-1, n=2)
    seeds = [body["seed"] if kind == "chat" else body["parameters"]["seed"] for body in bodies]
    assert seeds == [2**64 - 1, 0]


def test_tgi_draws_no_best_of_for_a_stream():
    with pytest.raises(UnsupportedFeatureError, match="`best_of=2`"):
        sent("tgi", "completion", stream=True, best_of=2, temperature=0.5)


def test_tgi_chat_says_that_no_stop_string_was_it(wire):
    message = {"role": "assistant", "content": "Sure thing"}
    wire.answers({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    with Client(wire.url, dialect="tgi") as client:
        assert "stop_reason" in client.chat("p", stop=["x"]).choices[0].model_fields_set


@pytest.mark.parametrize("dialect", ["openai", "vllm", "sglang"])
def test_a_schema_of_a_json_object_goes_where_it_is_read(dialect):
    (body,) = sent(dialect, response_format={"type": "json_object", "schema": SCHEMA})
    assert body["response_format"] == OPENAI_FORMAT
    (body,) = sent(dialect, response_format={"type": "json_object"})
    assert body["response_format"] == {"type": "json_object"}


def test_no_tools_are_used_in_no_way():
    (body,) = sent("vllm", tools=[], tool_choice="auto", parallel_tool_calls=True, user="auto")
    assert body.keys() == {"model", "messages", "user"}


def test_a_huge_value_is_cut_in_the_refusal():
    call = Call(kind="completion", model="m", params=build({}), prompt=[7] * 50_000)
    with pytest.raises(UnsupportedFeatureError, match="text only") as caught:
        get_dialect("ollama").requests(call, ServerInfo(dialect="ollama"))
    assert len(str(caught.value)) < 500
