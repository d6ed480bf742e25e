"""Embeddings from every kind of server that has them."""

from __future__ import annotations

import base64
import struct

import pytest

from myllm import AsyncClient, Client, InvalidResponseError, NotFoundError, UnsupportedFeatureError

PATH = "/v1/embeddings"
LLAMA_SERVER = {"/v1/models": "llama-server/models.json", "/props": "llama-server/props.json"}
LLAMA_CPP_PYTHON = {
    "/v1/models": "llama-cpp-python/models.json",
    "/openapi.json": "llama-cpp-python/openapi.json",
}


@pytest.mark.parametrize("dialect", ["vllm", "openai", "sglang"])
def test_openai_s_endpoint(replay, dialect):
    wire = replay({PATH: "sglang/embeddings.json"})
    with Client(wire.url, model="m", dialect=dialect) as client:
        answer = client.embed(["a", "b"], extra_body={"dimensions": 2})
    assert wire.bodies == [{"model": "m", "input": ["a", "b"], "dimensions": 2}]
    assert answer.vectors == [[0.25, -0.5], [0.75, 1.0]]
    assert (answer.usage.prompt_tokens, answer.raw["object"]) == (4, "list")


def test_the_vectors_come_in_the_order_of_the_texts(wire):
    wire.answers({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]})
    with Client(wire.url, model="m", dialect="openai") as client:
        assert client.embed(["a", "b"]).vectors == [[1.0], [2.0]]


def test_base64_holds_little_endian_floats(wire):
    text = base64.b64encode(struct.pack("<3f", 0.5, -2.0, 1e-3)).decode()
    wire.answers({"data": [{"index": 0, "embedding": text}]})
    with Client(wire.url, model="m", dialect="openai") as client:
        ((first, second, third),) = client.embed("a", extra_body={"encoding_format": "base64"}).vectors
    assert wire.bodies[0]["encoding_format"] == "base64"
    assert (first, second, third) == (0.5, -2.0, pytest.approx(1e-3))


def test_llama_server(replay):
    wire = replay({**LLAMA_SERVER, PATH: "llama-server/embeddings.json"})
    with Client(wire.url, dialect="llamacpp") as client:
        plain = client.embed(["Hello", "World"]).vectors
    wire = replay({**LLAMA_SERVER, PATH: "llama-server/embeddings_base64.json"})
    with Client(wire.url, dialect="llamacpp") as client:
        (packed,) = client.embed("Hello", extra_body={"encoding_format": "base64"}).vectors
    assert [len(vector) for vector in plain] == [4, 4]
    assert packed == pytest.approx(plain[0], rel=1e-5)


def test_llama_cpp_python_without_pooling(replay):
    wire = replay({**LLAMA_CPP_PYTHON, PATH: "llama-cpp-python/embeddings.json"})
    with Client(wire.url, dialect="llamacpp") as client:
        with pytest.raises(InvalidResponseError, match="a vector for each token"):
            client.embed(["Hello", "World"])


def test_ollama_s_own(replay):
    wire = replay({"/api/embed": "ollama/embed.json"})
    with Client(wire.url, model="all-minilm", dialect="ollama") as client:
        answer = client.embed(["a", "b"])
    assert wire.bodies == [{"model": "all-minilm", "input": ["a", "b"]}]
    assert answer.vectors[1] == [-0.0098027075, 0.06042469, 0.025257962]
    assert (answer.usage.prompt_tokens, answer.model) == (8, "all-minilm")


def test_tgi_has_none(replay):
    wire = replay({})
    with (
        Client(wire.url, dialect="tgi") as client,
        pytest.raises(UnsupportedFeatureError, match="embeddings-inference"),
    ):
        client.embed("a")
    assert wire.seen == []


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [],
    ],
)
def test_a_vector_too_few_is_an_error(wire, data):
    wire.answers({"data": data})
    with Client(wire.url, model="m", dialect="openai") as client:
        with pytest.raises(InvalidResponseError, match="2 texts"):
            client.embed(["a", "b"])


async def test_the_async_client_does_the_same(replay):
    wire = replay({PATH: "sglang/embeddings.json"})
    async with AsyncClient(wire.url, model="m", dialect="sglang") as client:
        assert (await client.embed(["a", "b"])).vectors == [[0.25, -0.5], [0.75, 1.0]]


def test_a_server_without_embeddings_is_told_what_it_wants(wire):
    wire.handler = lambda seen, reply: reply.json(
        {"detail": "Not Found"}, 404
    )  # as vLLM 0.32 with a generative model
    with Client(wire.url, model="m", dialect="vllm") as client:
        with pytest.raises(NotFoundError, match="--runner pooling"):
            client.embed("x")
