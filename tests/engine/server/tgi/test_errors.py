"""What TGI's clients are told when something goes wrong: status, `error_type` and TGI's own words."""

from __future__ import annotations

import json

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import (
    GenerationError,
    IncompleteGenerationError,
    OverloadedError,
    UnknownError,
    ValidationError,
)

from myllm_engine.errors import EngineDeadError, InvalidRequestError, QueueFullError
from myllm_engine.errors import GenerationError as EngineGenerationError
from myllm_engine.server.settings import ServerSettings


@pytest.fixture(scope="module")
def healthy(scripted, said):
    """Its tokens are bytes, its context has 100 of them."""
    with scripted([said(("ok", b"ok", "stop"))]) as live, httpx.Client(base_url=live.url) as client:
        yield client


def refused(parameters, inputs="hi"):
    return {"inputs": inputs, "parameters": parameters}


REFUSALS = [
    (refused({"temperature": 0}), "`temperature` must be strictly positive"),
    (refused({"repetition_penalty": 0}), "`repetition_penalty` must be strictly positive"),
    (refused({"frequency_penalty": 3}), "`frequency_penalty` must be >= -2.0 and <= 2.0"),
    (refused({"top_p": 1.0}), "`top_p` must be > 0.0 and < 1.0"),
    (refused({"top_p": 0}), "`top_p` must be > 0.0 and < 1.0"),
    (refused({"top_k": 0}), "`top_k` must be strictly positive"),
    (refused({"typical_p": 1.0}), "`typical_p` must be > 0.0 and < 1.0"),
    (refused({"max_new_tokens": 0}), "`max_new_tokens` must be strictly positive"),
    (
        refused({"max_new_tokens": 99}),
        "`inputs` tokens + `max_new_tokens` must be <= 100. Given: 2 `inputs` tokens and 99 `max_new_tokens`",
    ),
    (refused({}, "x" * 100), "`inputs` must have less than 99 tokens. Given: 100"),
    (refused({}, ""), "`inputs` cannot be empty"),
    (refused({"top_n_tokens": 6}), "`top_n_tokens` must be >= 0 and <= 5. Given: 6"),
    (refused({"stop": ["a"] * 5}), "`stop` supports up to 4 stop sequences. Given: 5"),
    (refused({"truncate": 0}), "`truncate` must be strictly positive and less than 99. Given: 0"),
    (refused({"truncate": 100}), "`truncate` must be strictly positive and less than 99. Given: 100"),
    (refused({"seed": -1}), "`seed` must be >= 0 and < 18446744073709551616. Given: -1"),
    (
        refused({"grammar": {"type": "regex", "value": ""}}),
        "grammar is not valid: `grammar` must be a non-empty string; got ''",
    ),
    (refused({"grammar": {"type": "json", "value": "{"}}), "grammar is not valid: `grammar` is not JSON: "),
    (refused({"adapter_id": "style"}), "`adapter_id` 'style' is not loaded; the adapters are: none"),
]
# What streams refuse in other words.
BEST_OF = [
    (refused({"best_of": 3, "do_sample": True}), "`best_of` must be > 0 and <= 2. Given: 3"),
    (refused({"best_of": 0}), "`best_of` must be > 0 and <= 2. Given: 0"),
    (refused({"best_of": 2}), "you must use sampling when `best_of` is > 1"),
    (refused({"best_of": 2, "top_k": 5, "seed": 1}), "`seed` must not be set when `best_of` > 1"),
    (refused({"best_of": 2, "top_k": 5, "num_return_sequences": 3}), "`num_return_sequences` must be 1 or"),
]
# What is no request of TGI's at all: its clients never send these, and axum answers 422, too.
MALFORMED = [
    (refused({"max_tokens": 5}), "Unknown field 'max_tokens'; did you mean `max_new_tokens`?"),
    (refused({"temperature": "hot"}), "`parameters.temperature`"),
    (refused({"grammar": {"type": "ebnf", "value": "a"}}), "`parameters.grammar.type`"),
    (refused({"grammar": {"type": "regex"}}), "`parameters.grammar.value` is required"),
    ({}, "`inputs` is required"),
    ({"inputs": ["a"]}, "`inputs`"),
]


@pytest.mark.parametrize(("body", "says"), [*REFUSALS, *BEST_OF, *MALFORMED])
@pytest.mark.parametrize("path", ["/generate", "/"])
def test_a_refusal_has_tgis_status_and_words(healthy, path, body, says):
    response = healthy.post(path, json=body)
    assert response.status_code == 422
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error_type"] == "validation"
    assert response.json()["error"].startswith(f"Input validation error: {says}")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        *REFUSALS,
        (refused({"best_of": 2}), "`best_of` != 1 is not supported when streaming tokens"),
        (
            refused({"decoder_input_details": True}),
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/generate_stream", "/"])
def test_in_a_stream_it_is_an_event(healthy, path, body, says):
    response = healthy.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    data, rest = response.text.split("\n\n")
    assert rest == ""
    assert data.startswith("data:")
    error = json.loads(data.removeprefix("data:"))
    assert error["error_type"] == "validation"
    assert error["error"].startswith(f"Input validation error: {says}")


@pytest.mark.parametrize(("body", "says"), MALFORMED)
def test_what_is_no_request_gets_a_status_from_streams_too(healthy, body, says):
    response = healthy.post("/generate_stream", json=body)
    assert response.status_code == 422
    assert response.json()["error"].startswith(f"Input validation error: {says}")


@pytest.mark.parametrize(("path", "stream"), [("/generate", True), ("/generate_stream", False)])
def test_a_stream_flag_that_contradicts_the_route_is_refused(healthy, path, stream):
    response = healthy.post(path, json={"inputs": "hi", "stream": stream})
    assert response.status_code == 422
    assert response.json()["error"].startswith("Input validation error: `stream` has no effect here")
    assert healthy.post(path, json={"inputs": "hi", "stream": not stream}).status_code == 200


def test_best_of_can_be_switched_off(scripted):
    with scripted(settings=ServerSettings(max_best_of=1)) as live:
        response = httpx.post(f"{live.url}/generate", json=refused({"best_of": 2, "do_sample": True}))
        assert response.status_code == 422
        assert response.json()["error"] == (
            "Input validation error: `best_of` != 1 is not allowed for this endpoint"
        )


FAILURES = [
    (
        QueueFullError("5 requests wait already"),
        429,
        "overloaded",
        "Model is overloaded",
        OverloadedError,
    ),
    (
        EngineGenerationError("the logits are no numbers"),
        424,
        "generation",
        "Request failed during generation: the logits are no numbers",
        GenerationError,
    ),
    (
        EngineDeadError("out of memory"),
        424,
        "generation",
        "Request failed during generation: The engine has stopped and serves no request: out of memory",
        GenerationError,
    ),
    (
        InvalidRequestError("`n` 9 is more than may run and wait", param="n"),
        422,
        "validation",
        "Input validation error: `n` 9 is more than may run and wait",
        ValidationError,
    ),
    (
        RuntimeError("secret"),
        500,
        "internal",
        "The server failed on this request; its log has the details.",
        UnknownError,
    ),
]


@pytest.mark.parametrize(("failure", "status", "error_type", "words", "theirs"), FAILURES)
def test_a_failure_has_tgis_status_and_type(scripted, failure, status, error_type, words, theirs):
    with scripted([failure]) as live:
        response = httpx.post(f"{live.url}/generate", json={"inputs": "x"})
        assert response.status_code == status
        assert response.json() == {"error": words, "error_type": error_type}
        assert ("retry-after" in response.headers) == (status == 429)
        response = httpx.post(f"{live.url}/generate_stream", json={"inputs": "x"})
        assert response.status_code == 200
        assert json.loads(response.text.removeprefix("data:")) == response_body(words, error_type)
        client = InferenceClient(model=live.url, provider="hf-inference")
        with pytest.raises(theirs):
            client.text_generation("x")
        with pytest.raises(theirs):
            list(client.text_generation("x", stream=True))


def response_body(words, error_type):
    return {"error": words, "error_type": error_type}


def test_a_failure_in_the_middle_is_the_last_event(scripted, said):
    with scripted([said(("a", b"a", None)), EngineDeadError("gone")]) as live:
        response = httpx.post(f"{live.url}/generate_stream", json={"inputs": "x"})
    token, error, rest = response.text.split("\n\n")
    assert rest == ""
    assert json.loads(token.removeprefix("data:"))["token"]["text"] == "a"
    assert json.loads(error.removeprefix("data:"))["error_type"] == "generation"


def test_a_text_that_is_broken_off_is_incomplete(scripted, said):
    with scripted([said(("a", b"a", None)), said(("", b"", "abort"))]) as live:
        response = httpx.post(f"{live.url}/generate", json={"inputs": "x"})
        assert response.status_code == 500
        assert response.json() == response_body("Incomplete generation", "incomplete_generation")
        response = httpx.post(f"{live.url}/generate_stream", json={"inputs": "x"})
        *_, error, _ = response.text.split("\n\n")
        assert json.loads(error.removeprefix("data:")) == response_body(
            "Incomplete generation stream", "incomplete_generation_stream"
        )
        with pytest.raises(IncompleteGenerationError):
            InferenceClient(model=live.url, provider="hf-inference").text_generation("x")


def test_a_dead_engine_is_unhealthy(scripted):
    dead = EngineDeadError("out of memory")
    with scripted([dead], error=dead) as live:
        for path in ("/health", "/", "/ping"):
            response = httpx.get(live.url + path)
            assert response.status_code == 503
            assert response.json() == {"error": "unhealthy", "error_type": "healthcheck"}


def test_too_large_a_body_is_refused_before_a_stream_begins(scripted):
    with scripted(settings=ServerSettings(max_body_size=50)) as live:
        for path in ("/generate", "/generate_stream", "/"):
            response = httpx.post(live.url + path, json={"inputs": "x" * 50})
            assert response.status_code == 413
            assert response.json()["error_type"] == "validation"
