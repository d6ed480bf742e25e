"""Clients written for TGI: huggingface_hub's of today, and those of TGI's and DSPy's own time, frozen here."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient
from huggingface_hub.errors import ValidationError

PROMPT = "The sky is blue because"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.fixture(scope="module")
def greedy(http) -> dict[str, Any]:
    """The plain answer, with details."""
    parameters = {"max_new_tokens": 12, "details": True}
    return http.post("/generate", json={"inputs": PROMPT, "parameters": parameters}).json()


def test_the_inference_client_reads_answers(client, greedy):
    arguments = {"max_new_tokens": 12, "return_full_text": False}
    assert client.text_generation(PROMPT, **arguments) == greedy["generated_text"]
    full = client.text_generation(PROMPT, max_new_tokens=12)
    # `POST /` stands in for the hosted API, which gives the prompt back.
    assert full == PROMPT + greedy["generated_text"]
    answer = client.text_generation(
        PROMPT, details=True, decoder_input_details=True, top_n_tokens=2, **arguments
    )
    assert answer.generated_text == greedy["generated_text"]
    details = answer.details
    assert [token.id for token in details.tokens] == [t["id"] for t in greedy["details"]["tokens"]]
    assert (details.finish_reason, details.generated_tokens, details.seed) == ("length", 12, None)
    assert "".join(token.text for token in details.prefill) == PROMPT
    # Lists within lists are left as they are by huggingface_hub.
    assert [top[0]["id"] for top in details.top_tokens] == [token.id for token in details.tokens]
    assert {len(top) for top in details.top_tokens} == {2}
    assert details.best_of_sequences is None


def test_the_inference_client_reads_streams(client, greedy):
    arguments = {"max_new_tokens": 12, "return_full_text": False, "stream": True}
    assert "".join(client.text_generation(PROMPT, **arguments)) == greedy["generated_text"]
    *rest, last = client.text_generation(PROMPT, details=True, top_n_tokens=1, **arguments)
    assert [output.index for output in [*rest, last]] == list(range(1, 13))
    assert all(output.generated_text is None and output.details is None for output in rest)
    assert all(output.top_tokens[0].id == output.token.id for output in rest)
    assert last.generated_text == greedy["generated_text"]
    assert last.details.finish_reason == "length"
    assert last.details.generated_tokens == 12
    assert last.details.input_length == 5


async def test_the_async_inference_client_reads_both(live, greedy):
    client = AsyncInferenceClient(model=live.url, timeout=60, provider="hf-inference")
    arguments = {"max_new_tokens": 12, "return_full_text": False}
    assert await client.text_generation(PROMPT, **arguments) == greedy["generated_text"]
    stream = await client.text_generation(PROMPT, stream=True, **arguments)
    assert "".join([piece async for piece in stream]) == greedy["generated_text"]
    await client.close()


def test_the_inference_client_asks_for_the_best_of_two(client):
    answer = client.text_generation(
        PROMPT, best_of=2, temperature=1.5, max_new_tokens=6, details=True, return_full_text=False
    )
    [other] = answer.details.best_of_sequences
    assert other.generated_text != answer.generated_text
    assert other.generated_tokens == len(other.tokens)

    def mean(tokens):
        return sum(token.logprob for token in tokens) / len(tokens)

    assert mean(answer.details.tokens) >= mean(other.tokens)


@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "json", "value": PERSON},
        {"type": "json_object", "value": json.dumps(PERSON)},
        {"type": "json_schema", "value": {"name": "person", "schema": PERSON}},
    ],
)
def test_the_inference_client_asks_for_json(client, grammar):
    text = client.text_generation(
        "John is 25 years old. As JSON: ", grammar=grammar, max_new_tokens=40, return_full_text=False
    )
    person = json.loads(text)
    assert person.keys() == {"name", "age"}
    assert isinstance(person["age"], int)


def test_the_inference_client_asks_for_a_pattern(client):
    pattern = r"[0-9]{1,3}\.[0-9]{1,3}"
    for stream in (False, True):
        answer = client.text_generation(
            "An address: ",
            grammar={"type": "regex", "value": pattern},
            max_new_tokens=20,
            return_full_text=False,
            stream=stream,
        )
        assert re.fullmatch(pattern, answer if isinstance(answer, str) else "".join(answer))


def test_the_inference_client_keeps_the_stop_text(client):
    answer = client.text_generation(
        "1, 2, 3, 4,", stop=[" 7"], max_new_tokens=30, details=True, return_full_text=False
    )
    assert answer.generated_text == " 5, 6, 7"
    assert answer.details.finish_reason == "stop_sequence"


def test_the_inference_client_samples_as_it_is_told(client):
    arguments = {"max_new_tokens": 6, "return_full_text": False, "details": True}
    sampled = client.text_generation(
        PROMPT, do_sample=True, typical_p=0.9, top_k=50, watermark=True, truncate=3, seed=3, **arguments
    )
    assert sampled.details.seed == 3
    again = client.text_generation(
        " is blue because", do_sample=True, typical_p=0.9, top_k=50, watermark=True, seed=3, **arguments
    )
    assert again == sampled


def test_the_inference_client_reads_refusals(client):
    for stream in (False, True):
        with pytest.raises(ValidationError, match="`top_p` must be > 0.0 and < 1.0"):
            list(client.text_generation(PROMPT, top_p=1.5, stream=stream))
    with pytest.raises(ValidationError, match="`best_of` must be > 0 and <= 2. Given: 9"):
        client.text_generation(PROMPT, best_of=9, do_sample=True)
    with pytest.raises(ValidationError, match="grammar is not valid: .*uniqueItems"):
        client.text_generation(
            PROMPT, grammar={"type": "json", "value": {"type": "array", "uniqueItems": True}}
        )


class FrozenHFClientTGI:
    """What DSPy 2.4's `HFClientTGI` sends and reads, with its `openai_to_hf` (dsp/modules/hf_client.py)."""

    def __init__(self, model: str, port: int | list[int], url: str, **kwargs: Any) -> None:
        self.url, self.ports = url, port if isinstance(port, list) else [port]
        self.kwargs = {
            "model": model,
            "port": port,
            "url": url,
            "temperature": 0.01,
            "max_tokens": 75,
            "top_p": 0.97,
            "n": 1,
            "stop": ["\n", "\n\n"],
            **kwargs,
        }

    def generate(self, prompt: str, **kwargs: Any) -> dict[str, Any]:
        kwargs = {**self.kwargs, **kwargs}
        several = kwargs["n"] > 1
        parameters = {"do_sample": several, "best_of": kwargs["n"], "details": several, **kwargs}
        del parameters["model"]
        renamed = {"n": "num_return_sequences", "max_tokens": "max_new_tokens"}
        parameters = {renamed.get(name, name): value for name, value in parameters.items()}
        if "frequency_penalty" in parameters:
            parameters["repetition_penalty"] = 1.0 - parameters.pop("frequency_penalty")
        parameters["temperature"] = max(0.1, parameters["temperature"])
        response = httpx.post(
            f"{self.url}:{random.choice(self.ports)}/generate",
            json={"inputs": prompt, "parameters": parameters},
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
        answer = response.json()
        completions = [answer["generated_text"]]
        if "details" in answer and "best_of_sequences" in answer["details"]:
            completions += [other["generated_text"] for other in answer["details"]["best_of_sequences"]]
        return {"prompt": prompt, "choices": [{"text": text} for text in completions]}


@pytest.fixture(scope="module")
def dspy(live) -> FrozenHFClientTGI:
    url, _, port = live.url.rpartition(":")
    return FrozenHFClientTGI("smollm2", [int(port)], url)


def test_dspys_client_of_the_time_gets_one_text(dspy):
    response = dspy.generate("Q: What is the capital of France?\nA:", max_tokens=10)
    [choice] = response["choices"]
    assert "Paris" in choice["text"]
    # Its stop strings are line ends, which TGI leaves in the text.
    assert "\n" not in choice["text"][:-1]


def test_dspys_client_of_the_time_gets_several(dspy):
    response = dspy.generate(PROMPT, n=2, temperature=1.4, max_tokens=6, frequency_penalty=0)
    first, second = (choice["text"] for choice in response["choices"])
    assert first
    assert second
    assert first != second


def test_tgis_own_client_gets_what_it_parses(http, greedy):
    """`text-generation` 0.7 posts every parameter to `/`, and takes the first of a list."""
    parameters = {
        "do_sample": False,
        "max_new_tokens": 12,
        "repetition_penalty": None,
        "frequency_penalty": None,
        "return_full_text": False,
        "stop": [],
        "seed": None,
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "truncate": None,
        "typical_p": None,
        "best_of": None,
        "watermark": False,
        "details": True,
        "decoder_input_details": False,
        "top_n_tokens": None,
        "grammar": None,
    }
    body = {"inputs": PROMPT, "parameters": parameters, "stream": False}
    [answer] = http.post("/", json=body).json()
    assert answer == greedy
    lines = http.post("/", json={**body, "stream": True}).text.splitlines()
    tokens = [json.loads(line[5:])["token"]["text"] for line in lines if line.startswith("data:")]
    assert "".join(tokens) == greedy["generated_text"]
