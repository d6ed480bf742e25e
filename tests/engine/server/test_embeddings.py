"""Embeddings through the openai SDK, against transformers' hidden states."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import openai
import pytest
import torch

from myllm_engine.server.settings import ServerSettings

TEXTS = ["The sea is blue.", "A cat sat on the mat, and then it left."]


@pytest.fixture(scope="module")
def client(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


def expected(model, token_ids, pooling="last"):
    with torch.inference_mode():
        hidden = model.base_model(torch.tensor([token_ids])).last_hidden_state[0]
    pooled = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
    return torch.nn.functional.normalize(pooled, dim=0).numpy()


def test_embeddings_equal_transformers(client, engine, dense):
    answer = client.embeddings.create(model="smollm2", input=TEXTS)  # the SDK asks for base64
    assert answer.model == "smollm2"
    assert [item.index for item in answer.data] == [0, 1]
    for item, text in zip(answer.data, TEXTS, strict=True):
        np.testing.assert_allclose(item.embedding, expected(dense, engine.tokenizer.encode(text)), atol=2e-3)
        assert np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-5)
    tokens = sum(len(engine.tokenizer.encode(text)) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_the_server_can_take_the_mean(engine, dense, serve):
    with serve(ServerSettings(pooling="mean")) as live:
        answer = httpx.post(f"{live.url}/v1/embeddings", json={"input": TEXTS[0]}, timeout=60).json()
    [item] = answer["data"]
    ours = expected(dense, engine.tokenizer.encode(TEXTS[0]), "mean")
    np.testing.assert_allclose(item["embedding"], ours, atol=2e-3)


def test_inputs_and_encodings_of_every_kind_give_the_same(http, engine):
    token_ids = engine.tokenizer.encode(TEXTS[0])

    def data(**body):
        response = http.post("/v1/embeddings", json=body)
        assert response.status_code == 200, response.text
        return [item["embedding"] for item in response.json()["data"]]

    [plain] = data(input=TEXTS[0])
    assert len(plain) == engine.hidden_size
    for same in (token_ids, [token_ids], [TEXTS[0]]):
        np.testing.assert_allclose(data(input=same)[0], plain, atol=1e-4)
    np.testing.assert_allclose(data(input=token_ids, dimensions=engine.hidden_size)[0], plain, atol=1e-4)
    for options, dtype, error in (
        ({}, "=f4", 1e-4),
        ({"endianness": "big"}, ">f4", 1e-4),
        ({"endianness": "little", "embed_dtype": "float16"}, "<f2", 1e-3),
    ):
        [encoded] = data(input=TEXTS[0], encoding_format="base64", **options)
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(encoded), dtype), plain, atol=error)
    [first] = data(input=TEXTS[1], truncate_prompt_tokens=3)
    [last] = data(input=TEXTS[1], truncate_prompt_tokens=3, truncation_side="left")
    cut = engine.tokenizer.encode(TEXTS[1])
    np.testing.assert_allclose(first, data(input=cut[:3])[0], atol=1e-4)
    np.testing.assert_allclose(last, data(input=cut[-3:])[0], atol=1e-4)


def test_a_conversation_is_rendered_without_an_open_turn(http, engine):
    messages = [{"role": "user", "content": "Hello"}]
    for body in ({}, {"add_generation_prompt": True}):
        token_ids = engine.tokenizer.encode_chat(messages, add_generation_prompt=bool(body))
        [ours] = http.post("/v1/embeddings", json={"messages": messages, **body}).json()["data"]
        [same] = http.post("/v1/embeddings", json={"input": token_ids}).json()["data"]
        np.testing.assert_allclose(ours["embedding"], same["embedding"], atol=1e-4)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "either `input` or `messages`"),
        ({"input": "a", "messages": [{"role": "user", "content": "x"}]}, "input", "either"),
        ({"input": []}, "input", "`input` must be a string"),
        ({"input": 5}, "input", "`input` must be a string"),
        ({"input": [[]]}, "input", "empty"),
        ({"input": ""}, "input", "empty"),
        ({"input": ["a"] * 2049}, "input", "2049 texts; a request may have 2048"),
        ({"input": [10**6]}, "input", "vocabulary"),
        ({"input": "a", "dimensions": 2}, "dimensions", "`dimensions` must be 576 or left out"),
        ({"input": "a", "encoding_format": "bytes"}, "encoding_format", "encoding_format"),
        ({"input": "a", "normalize": False}, "normalize", "`normalize` must be true"),
        ({"input": "a", "inputs": "b"}, "inputs", "did you mean `input`?"),
        ({"input": "a", "model": "other"}, "model", "does not exist"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "Unknown role"),
        ({"input": "a", "truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens", "maximum context length"),
        ({"input": [[5] * 9000]}, "input", "maximum context length is 8192 tokens. However, you requested"),
    ],
)
def test_what_cannot_be_embedded_is_refused(http, body, param, says):
    response = http.post("/v1/embeddings", json=body)
    assert response.status_code == (404 if param == "model" else 400), response.text
    error = response.json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error
