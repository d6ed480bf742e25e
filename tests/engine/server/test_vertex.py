"""Prompts and conversations in Vertex AI's envelope."""

from __future__ import annotations

import time

import httpx
import pytest

from myllm_engine.errors import EngineError

PROMPT = "The sky is blue because"
CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}


def test_each_instance_gets_its_text(http):
    parameters = {"max_new_tokens": 6, "seed": 3}
    instances = [{"inputs": PROMPT, "parameters": parameters}, {**CHAT, "max_tokens": 20}]
    response = http.post("/vertex", json={"instances": instances})
    assert response.status_code == 200, response.text
    text, answer = response.json()["predictions"]
    # As in TGI, prompts are sampled, whatever the parameters leave open.
    body = {"inputs": PROMPT, "parameters": {**parameters, "do_sample": True}}
    assert text == http.post("/generate", json=body).json()["generated_text"]
    assert "Paris" in answer


def test_parameters_of_an_instance_are_honoured(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))]) as live:
        parameters = {"do_sample": False, "stop": ["\n"], "repetition_penalty": 1.5}
        instances = [{"inputs": "a", "parameters": parameters}, {"inputs": "b"}]
        response = httpx.post(f"{live.url}/vertex", json={"instances": instances})
        assert response.json() == {"predictions": ["ok", "ok"]}
        first, second = live.engine.requests
    assert (first.params.temperature, first.params.stop) == (0.0, ("\n",))
    assert first.params.repetition_penalty == 1.5
    assert second.params.temperature == 1.0


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"instances": []}, "`instances`: list should have at least 1 item"),
        ({}, "`instances` is required"),
        ({"instances": [{"input": "x"}]}, "Unknown field 'input'; did you mean `inputs`?"),
        ({"instances": [{"inputs": "x"}, {"inputs": ""}]}, "`inputs` cannot be empty"),
        ({"instances": [{"inputs": "x", "parameters": {"top_p": 2}}]}, "`top_p` must be > 0.0 and < 1.0"),
        ({"instances": [{**CHAT, "n": 2}]}, "an instance is answered with one text"),
        ({"instances": [{**CHAT, "stream": True}]}, "an instance is answered with one text"),
        (
            {"instances": [{"inputs": "x"}] * 5},
            "Number of prompts exceeds the maximum allowed batch size of 4",
        ),
        ({"instances": ["x"]}, "`instances[0]"),
    ],
)
def test_a_wrong_instance_is_refused_in_tgis_words(http, body, says):
    response = http.post("/vertex", json=body)
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
    assert response.json()["error"].startswith(f"Input validation error: {says}")


def test_one_failure_ends_all(scripted):
    with scripted([EngineError("no numbers")]) as live:
        response = httpx.post(f"{live.url}/vertex", json={"instances": [{"inputs": "a"}, {"inputs": "b"}]})
        assert response.status_code == 424
        assert response.json()["error_type"] == "generation"


def test_nothing_runs_on_when_an_instance_is_wrong(live, http):
    parameters = {"max_new_tokens": 2000, "do_sample": True}
    instances = [{"inputs": PROMPT, "parameters": parameters}, {"inputs": ""}]
    before = live.engine.stats().generation_tokens_total
    assert http.post("/vertex", json={"instances": instances}).status_code == 422
    deadline = time.monotonic() + 2
    while live.engine.stats().num_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert live.engine.stats().generation_tokens_total - before < 100
