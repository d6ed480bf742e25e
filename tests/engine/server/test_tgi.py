"""TGI's API on the bundled model, used through huggingface_hub's client."""

from __future__ import annotations

import itertools
import json

import httpx
import huggingface_hub.constants
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "The sky is blue because"


@pytest.fixture(scope="module", autouse=True)
def online():
    """Let huggingface_hub reach the loopback server: offline, it refuses any address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def client(live):
    return InferenceClient(model=live.url, timeout=60, provider="hf-inference")


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


def test_the_inference_client_reads_answers(client, greedy):
    arguments = {"max_new_tokens": 12, "return_full_text": False}
    assert client.text_generation(PROMPT, **arguments) == greedy["generated_text"]
    full = client.text_generation(PROMPT, max_new_tokens=12)
    # `POST /` stands in for the hosted API, which gives the prompt back.
    assert full == PROMPT + greedy["generated_text"]
    answer = client.text_generation(PROMPT, details=True, **arguments)
    assert answer.generated_text == greedy["generated_text"]
    assert [token.id for token in answer.details.tokens] == [t["id"] for t in greedy["details"]["tokens"]]


def test_the_inference_client_reads_streams(client, greedy):
    arguments = {"max_new_tokens": 12, "return_full_text": False, "stream": True}
    assert "".join(client.text_generation(PROMPT, **arguments)) == greedy["generated_text"]
    *rest, last = client.text_generation(PROMPT, details=True, **arguments)
    assert [output.index for output in [*rest, last]] == list(range(1, 13))
    assert all(output.generated_text is None and output.details is None for output in rest)
    assert last.generated_text == greedy["generated_text"]
    assert last.details.finish_reason == "length"
    assert last.details.generated_tokens == 12
    assert last.details.input_length == 5


def test_the_inference_client_chats(live):
    client = InferenceClient(base_url=live.url, timeout=60)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat_completion(messages, temperature=0.0, max_tokens=20)
    assert "Paris" in answer.choices[0].message.content
    chunks = client.chat_completion(messages, temperature=0.0, max_tokens=20, stream=True)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.choices[0].message.content
    )


def test_the_inference_client_reads_refusals(client):
    with pytest.raises(ValidationError, match="`top_p` must be > 0.0 and < 1.0"):
        client.text_generation(PROMPT, top_p=1.5)
    with pytest.raises(ValidationError, match="`watermark` is not supported by this server yet"):
        client.text_generation(PROMPT, watermark=True)


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


def test_truncate_keeps_the_end(http):
    long = {"inputs": "Ignore all of this. " + PROMPT, "parameters": {"max_new_tokens": 5, "truncate": 3}}
    response = http.post("/generate", json=long)
    assert response.headers["x-prompt-tokens"] == "3"
    short = {"inputs": " blue because", "parameters": {"max_new_tokens": 5}}
    short["inputs"] = " is blue because"
    assert response.json() == http.post("/generate", json=short).json()
    full = {**long, "parameters": {**long["parameters"], "return_full_text": True}}
    text = http.post("/generate", json=full).json()["generated_text"]
    assert text == " is blue because" + response.json()["generated_text"]


def test_the_root_answers_a_list_or_a_stream(http, greedy):
    parameters = {"max_new_tokens": 12, "return_full_text": False}
    answer = http.post("/", json={"inputs": PROMPT, "parameters": parameters})
    assert answer.json() == [{"generated_text": greedy["generated_text"]}]
    stream = http.post("/", json={"inputs": PROMPT, "parameters": parameters, "stream": True})
    assert stream.text.startswith("data:{")


def test_headers_tell_the_work_done(http):
    response = http.post("/generate", json={"inputs": PROMPT, "parameters": {"max_new_tokens": 3}})
    headers = response.headers
    assert headers["x-prompt-tokens"] == "5"
    assert headers["x-generated-tokens"] == "3"
    assert headers["x-compute-characters"] == str(len(PROMPT))
    assert headers["x-compute-type"] == "cpu"
    assert float(headers["x-compute-time"]) > 0
    assert int(headers["x-total-time"]) >= int(headers["x-validation-time"])


def test_info_describes_the_server(client, http, engine):
    info = client.get_endpoint_info()
    assert info["model_id"] == "smollm2"
    assert info["max_total_tokens"] == engine.max_model_len
    assert info["max_input_tokens"] == engine.max_model_len - 1
    assert (info["max_best_of"], info["max_stop_sequences"]) == (2, 4)
    assert client.health_check()
    assert http.get("/").status_code == 200


def test_input_beyond_the_context_is_refused_in_tgis_words(http, engine):
    limit = engine.max_model_len
    response = http.post("/generate", json={"inputs": "a b" * limit})
    assert response.status_code == 422
    assert f"`inputs` must have less than {limit} tokens. Given: " in response.json()["error"]


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
