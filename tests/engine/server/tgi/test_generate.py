"""TGI's routes for prompts, on the bundled model."""

from __future__ import annotations

import itertools
import json

import httpx
import pytest
import torch
from transformers import PretrainedConfig, WatermarkDetector, WatermarkingConfig

from myllm_engine.server.settings import ServerSettings

PROMPT = "The sky is blue because"


@pytest.fixture(scope="module")
def greedy(http):
    """The plain answer, with details."""
    parameters = {"max_new_tokens": 12, "details": True}
    return http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()


def test_generate_is_greedy_when_parameters_do_not_sample(http, greedy, engine):
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    text = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert greedy["generated_text"] == text
    details = greedy["details"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == 12
    assert details["seed"] is None
    assert details["prefill"] == []
    assert "".join(token["text"] for token in details["tokens"]) == text
    assert engine.tokenizer.decode([token["id"] for token in details["tokens"]]) == text
    assert "top_tokens" not in details
    assert "best_of_sequences" not in details


def test_no_parameters_at_all_means_sampling(http):
    answer = http.post(
        "/generate", json={"inputs": PROMPT, "parameters": {"max_new_tokens": 2, "details": True}}
    )
    assert answer.json()["details"]["seed"] is None
    # Without `parameters` there is no limit either: a stream that does not end by itself is left.
    texts = set()
    for _ in range(6):
        with http.stream("POST", "/generate_stream", json={"inputs": PROMPT}) as response:
            lines = itertools.islice((line for line in response.iter_lines() if line), 12)
            texts.add(tuple(json.loads(line[5:])["token"]["id"] for line in lines))
    assert len(texts) > 1


def test_stream_events_are_tgis(http, greedy):
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 12, "top_n_tokens": 2}}
    response = http.post("/generate_stream", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    assert all(event.startswith('data:{"index":') for event in events)
    parsed = [json.loads(event[5:]) for event in events]
    assert [event["token"] for event in parsed] == greedy["details"]["tokens"]
    assert all(event["top_tokens"][0]["id"] == event["token"]["id"] for event in parsed)
    assert all(len(event["top_tokens"]) == 2 for event in parsed)
    assert parsed[-1]["generated_text"] == greedy["generated_text"]
    # Details were not asked for.
    assert parsed[-1]["details"] is None


def test_the_stop_text_stays(http):
    body = {"inputs": "1, 2, 3, 4,", "parameters": {"max_new_tokens": 30, "stop": [" 7"], "details": True}}
    answer = http.post("/generate", json=body).json()
    assert answer["generated_text"] == " 5, 6, 7"
    assert answer["details"]["finish_reason"] == "stop_sequence"


def test_the_end_of_the_answer_is_told(http, engine):
    prompt = engine.tokenizer.render_chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = http.post("/generate", json={"inputs": prompt, "parameters": {"details": True}}).json()
    assert answer["details"]["finish_reason"] == "eos_token"
    end = answer["details"]["tokens"][-1]
    assert (end["text"], end["special"]) == ("<|im_end|>", True)
    assert "<|im_end|>" not in answer["generated_text"]


def test_a_reported_seed_gives_the_answer_again(http):
    parameters = {"max_new_tokens": 8, "do_sample": True, "details": True}
    first = http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()
    seed = first["details"]["seed"]
    again = http.post("/generate", json={"inputs": PROMPT, "parameters": {**parameters, "seed": seed}}).json()
    assert again == first
    other = http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()
    assert other["details"]["seed"] != seed


def test_best_of_returns_the_likeliest(http):
    parameters = {"max_new_tokens": 8, "temperature": 1.5, "best_of": 2, "details": True}
    answer = http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()
    best, [other] = answer["details"], answer["details"]["best_of_sequences"]
    assert other["generated_text"] != answer["generated_text"]

    def mean(sequence):
        return sum(token["logprob"] for token in sequence["tokens"]) / len(sequence["tokens"])

    assert mean(best) >= mean(other)
    # Each can be had again by its own seed.
    for text, seed in ((answer["generated_text"], best["seed"]), (other["generated_text"], other["seed"])):
        single = {"max_new_tokens": 8, "temperature": 1.5, "seed": seed}
        again = http.post("/generate", json={"inputs": PROMPT, "parameters": single}).json()
        assert again["generated_text"] == text


def test_the_root_answers_a_list_or_a_stream(http, greedy):
    parameters = {"max_new_tokens": 12, "return_full_text": False}
    answer = http.post("/", json={"inputs": PROMPT, "parameters": parameters})
    assert answer.json() == [{"generated_text": greedy["generated_text"]}]
    stream = http.post("/", json={"inputs": PROMPT, "parameters": parameters, "stream": True})
    assert stream.text.startswith("data:{")


def test_joined_outputs_are_told_token_by_token(scripted, said):
    # A slow reader gets several tokens at once; é is two of them.
    outputs = [said(("caf", b"caf", None)), said(("", b"\xc3", None)), said(("é!", b"\xa9!", "length"))]
    with scripted(outputs) as live:
        body = {"inputs": "x", "parameters": {"details": True, "max_new_tokens": 6}}
        response = httpx.post(f"{live.url}/generate_stream", json=body)
    *events, _ = response.text.split("\n\n")
    parsed = [json.loads(event[5:]) for event in events]
    assert [event["index"] for event in parsed] == [1, 2, 3, 4, 5, 6]
    assert [event["token"]["text"] for event in parsed] == ["c", "a", "f", "", "é", "!"]
    assert [event["generated_text"] for event in parsed] == [None] * 5 + ["café!"]
    assert parsed[-1]["details"]["generated_tokens"] == 6


def test_a_whole_stream_is_told_when_it_is_asked_of_the_root(http, greedy):
    parameters = {"max_new_tokens": 12, "details": True}
    response = http.post("/", json={"inputs": PROMPT, "parameters": parameters, "stream": True})
    *_, last, _ = response.text.split("\n\n")
    event = json.loads(last.removeprefix("data:"))
    # As in the hosted API, which this route stands in for, the text begins with the prompt.
    assert event["generated_text"] == PROMPT + greedy["generated_text"]
    assert event["details"] == {
        "finish_reason": "length",
        "generated_tokens": 12,
        "seed": None,
        "input_length": 5,
    }


def test_truncate_keeps_the_end(http):
    body = {"inputs": "Ignore all of this. " + PROMPT, "parameters": {"max_new_tokens": 5, "truncate": 3}}
    response = http.post("/generate", json=body)
    assert response.headers["x-prompt-tokens"] == "3"
    short = {"inputs": " is blue because", "parameters": {"max_new_tokens": 5}}
    assert response.json() == http.post("/generate", json=short).json()
    # The full text begins with the prompt as it was sent.
    body["parameters"]["return_full_text"] = True
    text = http.post("/generate", json=body).json()["generated_text"]
    assert text == body["inputs"] + response.json()["generated_text"]
    assert http.post("/generate", json=body).headers["x-compute-characters"] == str(len(body["inputs"]))


def test_decoder_input_details_are_those_of_the_prompt(http, engine):
    parameters = {"max_new_tokens": 2, "decoder_input_details": True}
    details = http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()["details"]
    assert [token["id"] for token in details["prefill"]] == engine.tokenizer.encode(PROMPT)
    assert "".join(token["text"] for token in details["prefill"]) == PROMPT
    body = {"prompt": PROMPT, "max_tokens": 1, "prompt_logprobs": 0}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    first, *rest = details["prefill"]
    assert first["logprob"] is None
    for token, scores in zip(rest, choice["prompt_logprobs"][1:], strict=True):
        assert token["logprob"] == pytest.approx(scores[str(token["id"])]["logprob"], abs=1e-4)
    assert len(details["tokens"]) == 2


def test_every_one_of_best_of_tells_of_the_prompt(http):
    parameters = {"max_new_tokens": 2, "decoder_input_details": True, "best_of": 2, "do_sample": True}
    details = http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()["details"]
    [other] = details["best_of_sequences"]
    assert len(details["prefill"]) == 5
    assert other["prefill"] == details["prefill"]


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_a_seed_may_be_any_of_64_bits(http, seed):
    parameters = {"max_new_tokens": 4, "do_sample": True, "details": True, "seed": seed}
    first, again = (
        http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json() for _ in range(2)
    )
    assert first["details"]["seed"] == seed
    assert first == again


def test_a_watermark_is_found_by_transformers(http, engine):
    config = WatermarkingConfig(greenlist_ratio=0.5, bias=2.0)
    model = PretrainedConfig(vocab_size=engine.vocab_size, bos_token_id=1)
    detector = WatermarkDetector(model, "cpu", config)

    def z_score(**more):
        parameters = {"max_new_tokens": 40, "temperature": 1.0, "seed": 7, "details": True, **more}
        answer = http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()
        tokens = [token["id"] for token in answer["details"]["tokens"]]
        [score] = detector(torch.tensor([tokens]), return_dict=True).z_score
        return score

    assert z_score(watermark=True) > 3
    assert z_score(watermark=False) < 2


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ({}, {"temperature": 0.0, "seed": None, "max_tokens": None, "logprobs": 0, "n": 1}),
        ({"do_sample": True}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "typical_p": 1.0}),
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"do_sample": False, "top_k": 7}, {"temperature": 1.0, "top_k": 7}),
        ({"top_p": 0.5}, {"temperature": 1.0, "top_p": 0.5}),
        ({"typical_p": 0.4}, {"temperature": 1.0, "typical_p": 0.4}),
        ({"repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2}),
        ({"frequency_penalty": -1}, {"frequency_penalty": -1.0}),
        ({"max_new_tokens": 5}, {"max_tokens": 5}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b"), "include_stop_str_in_output": True}),
        ({"watermark": True}, {"watermark": True}),
        ({"top_n_tokens": 2}, {"logprobs": 2}),
        ({"decoder_input_details": True}, {"prompt_logprobs": 0}),
        ({"do_sample": True, "best_of": 2}, {"n": 2}),
        ({"seed": 5}, {"seed": None}),  # nothing is drawn
        ({"seed": 5, "do_sample": True}, {"seed": 5}),
        ({"temperature": None, "stop": None, "details": None}, {"temperature": 0.0, "stop": ()}),
    ],
)
def test_parameters_reach_the_engine(scripted, said, parameters, fields):
    with scripted([said(*[("ok", b"ok", "stop")] * fields.get("n", 1))]) as live:
        body = {"inputs": "hi", "parameters": parameters}
        assert httpx.post(f"{live.url}/generate", json=body).status_code == 200
        [request] = live.engine.requests
    assert {name: getattr(request.params, name) for name in fields} == fields
    assert request.lora is None


def test_an_adapter_is_named_by_its_id(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], loras={"style": "folder"}) as live:
        body = {"inputs": "hi", "parameters": {"adapter_id": "style"}}
        assert httpx.post(f"{live.url}/generate", json=body).status_code == 200
        assert live.engine.requests[0].lora == "style"
        body["parameters"]["adapter_id"] = "stile"
        response = httpx.post(f"{live.url}/generate", json=body)
        assert response.json()["error"] == (
            "Input validation error: `adapter_id` 'stile' is not loaded; the adapters are: 'style'"
        )


def test_headers_tell_the_work_done(http):
    response = http.post("/generate", json={"inputs": PROMPT, "parameters": {"max_new_tokens": 3}})
    headers = response.headers
    assert headers["x-prompt-tokens"] == "5"
    assert headers["x-generated-tokens"] == "3"
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert headers["x-compute-type"] == "cpu"
    names = ("validation", "queue", "inference")
    validation, queue, inference = (int(headers[f"x-{name}-time"]) for name in names)
    total = int(headers["x-total-time"])
    # Each is cut to whole milliseconds.
    assert 0 <= total - (validation + queue + inference) <= 3
    assert total == int(float(headers["x-compute-time"]) * 1000)
    assert int(headers["x-time-per-token"]) == pytest.approx(inference / 3, abs=1)
    assert inference > 0


def test_info_describes_the_server(client, http, engine):
    info = client.get_endpoint_info()
    assert info["model_id"] == "smollm2"
    assert info["max_total_tokens"] == engine.max_model_len
    assert info["max_input_tokens"] == engine.max_model_len - 1
    assert (info["max_best_of"], info["max_stop_sequences"]) == (2, 4)
    assert {"model_sha", "model_pipeline_tag", "max_concurrent_requests", "validation_workers"} < info.keys()
    assert {"max_client_batch_size", "router", "version", "sha", "docker_label"} < info.keys()
    assert client.health_check()
    assert http.get("/").status_code == 200


def test_info_has_the_name_and_the_limits_of_the_server(scripted):
    settings = ServerSettings(
        served_model_names=("meta-llama/Llama-2-7b-hf", "llama"),
        max_input_tokens=60,
        max_concurrent_requests=128,
        max_client_batch_size=4,
        max_best_of=3,
        max_stop_sequences=6,
        max_top_n_tokens=7,
    )
    with scripted(settings=settings) as live:
        info = httpx.get(f"{live.url}/info").json()
    # DSPy's client refuses a server whose model has another name than its own.
    assert info["model_id"] == "meta-llama/Llama-2-7b-hf"
    limits = ("input_tokens", "concurrent_requests", "client_batch_size", "best_of", "stop_sequences")
    assert [info[f"max_{name}"] for name in limits] == [60, 128, 4, 3, 6]
    assert info["max_top_n_tokens"] == 7
