"""What goes onto the wire, and what comes off it, against the documented formats."""

from __future__ import annotations

import json
import time

import pytest

from myllm import Client, InvalidParameterError, InvalidResponseError, UnsupportedFeatureError
from myllm.dialects import DONE, get_dialect
from myllm.params import build
from myllm.wire import Call

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
    with Client(wire.url, model="m") as client:
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
    with Client(wire.url, model="m", api_key="k", headers={"X-A": "1"}) as client:
        client.chat("x", extra_body={"vllm_xargs": {"a": 1}}, extra_headers={"X-B": "2"})
    assert wire.bodies[0]["vllm_xargs"] == {"a": 1}
    headers = wire.seen[0].headers
    assert (headers["x-a"], headers["x-b"], headers["authorization"]) == ("1", "2", "Bearer k")
    assert headers["x-request-id"].startswith("myllm-")


def test_completion_logprobs_take_the_chat_s_shape(wire):
    wire.answers(
        {**TEXT, "choices": [{"index": 0, "text": "Hi!", "finish_reason": "stop", "logprobs": {
            "text_offset": [0, 2], "tokens": ["Hi", "!"], "token_logprobs": [-0.1, -0.2],
            "top_logprobs": [{"Hi": -0.1, "Ho": -3.0}, {"!": -0.2}]}}]}
    )  # fmt: skip
    with Client(wire.url, model="m") as client:
        logprobs = client.complete("x", logprobs=2).choices[0].logprobs
    assert wire.bodies[0]["logprobs"] == 2
    assert [(t.token, t.logprob) for t in logprobs.content] == [("Hi", -0.1), ("!", -0.2)]
    assert [(t.token, t.logprob) for t in logprobs.content[0].top_logprobs] == [("Hi", -0.1), ("Ho", -3.0)]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_read_under_both_names(wire, name):
    body = json.loads(json.dumps(CHAT))
    body["choices"][0]["message"][name] = "because"
    wire.answers(body)
    with Client(wire.url, model="m") as client:
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
    with Client(wire.url, model="m") as client, pytest.raises(InvalidResponseError) as caught:
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


def test_tgi_schema_is_its_grammar(wire):
    schema = {"type": "object", "properties": {}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert tgi_parameters(wire, response_format=wanted)["grammar"] == {"type": "json", "value": schema}


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
