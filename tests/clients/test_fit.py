"""`fit` counts with the server's tokenizer: here SmolLM2's own, behind vLLM's `/tokenize` format."""

from __future__ import annotations

from typing import Any

import pytest

import myllm
from myllm import AsyncClient, Client
from myllm_engine.config import EngineConfig
from myllm_engine.models.source import resolve_model
from myllm_engine.tokenizer import Tokenizer, load_tokenizer

CONTEXT = 100
TEXT = " ".join(f"Sentence number {i} tells of Zürich, 数字 and 🦙 {i * 137}." for i in range(40))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(EngineConfig(), resolve_model("smollm2"))


@pytest.fixture
def tokenizing(wire, tokenizer):
    """`wire` with the tokenizer's endpoints."""

    def handler(seen: Any, reply: Any) -> None:
        if seen.path == "/detokenize":
            reply.json({"prompt": tokenizer.decode(seen.body["tokens"], skip_special_tokens=False)})
        elif seen.path == "/tokenize":
            messages = seen.body.get("messages")
            ids = tokenizer.encode_chat(messages) if messages else tokenizer.encode(seen.body["prompt"])
            reply.json({"count": len(ids), "max_model_len": CONTEXT, "tokens": ids})
        else:
            reply.json({}, 404)

    wire.handler = handler
    return wire


@pytest.fixture
def client(tokenizing):
    with Client(tokenizing.url, model="m", dialect="vllm") as made:
        yield made


def test_what_fits_is_left_as_it_is(client):
    assert client.fit("Hello", 50) == "Hello"
    messages = [{"role": "user", "content": "Hello"}]
    assert client.fit(messages, 20) == messages


@pytest.mark.parametrize("keep", ["end", "start"])
@pytest.mark.parametrize("max_tokens", [1, 17, 50, 93, 99])
def test_a_text_is_cut_to_the_last_token_that_fits(client, tokenizer, keep, max_tokens):
    fitted = client.fit(TEXT, max_tokens, keep=keep)
    assert TEXT.endswith(fitted) if keep == "end" else TEXT.startswith(fitted)
    assert len(tokenizer.encode(fitted)) <= CONTEXT - max_tokens
    more = TEXT[-len(fitted) - 4 :] if keep == "end" else TEXT[: len(fitted) + 4]
    assert len(tokenizer.encode(more)) > CONTEXT - max_tokens  # nothing was cut without need


def test_it_takes_few_questions(client, tokenizing):
    client.fit(TEXT, 50)
    assert len(tokenizing.seen) <= 12


def test_without_detokenize_it_is_cut_all_the_same(client, tokenizing, tokenizer):
    whole = tokenizing.handler
    tokenizing.handler = lambda seen, reply: (
        reply.json({}, 404) if seen.path == "/detokenize" else whole(seen, reply)
    )
    fitted = client.fit(TEXT, 50)
    assert TEXT.endswith(fitted)
    assert CONTEXT - 50 - 2 <= len(tokenizer.encode(fitted)) <= CONTEXT - 50


def conversation(turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "Be brief."}]
    for number in range(turns):
        messages += [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": f"Answer {number}."},
        ]
    return [*messages, {"role": "user", "content": "And the last one?"}]


def test_a_conversation_loses_its_oldest_turns_whole(client, tokenizer):
    messages = conversation(12)
    fitted = client.fit(messages, 30)
    assert fitted[0] == messages[0]
    assert fitted[1]["role"] == "user"
    assert fitted[1:] == messages[-len(fitted) + 1 :]
    assert len(tokenizer.encode_chat(fitted)) <= CONTEXT - 30
    one_more = [messages[0], *messages[-len(fitted) - 1 :]]
    assert len(tokenizer.encode_chat(one_more)) > CONTEXT - 30


def test_a_last_message_that_is_too_long_is_an_error_with_numbers(client):
    with pytest.raises(myllm.ContextLengthError) as caught:
        client.fit([{"role": "user", "content": TEXT}], 30)
    assert caught.value.limit == CONTEXT
    assert caught.value.max_tokens == 30
    assert caught.value.prompt_tokens is not None
    assert caught.value.prompt_tokens > CONTEXT


def test_no_room_at_all_is_an_error(client):
    with pytest.raises(myllm.ContextLengthError):
        client.fit(TEXT, CONTEXT)


@pytest.mark.parametrize(
    "arguments", [{"max_tokens": -1}, {"max_tokens": "9"}, {"max_tokens": 9, "keep": "middle"}]
)
def test_arguments_are_checked(client, arguments):
    with pytest.raises(myllm.InvalidParameterError):
        client.fit("x", **arguments)


def test_a_server_without_a_tokenizer_says_so(wire):
    with Client(wire.url, model="m", dialect="openai") as client:
        with pytest.raises(myllm.UnsupportedFeatureError, match="tokenizer"):
            client.fit("x", 5)
    assert wire.seen == []


async def test_the_async_client_fits_too(tokenizing, tokenizer):
    async with AsyncClient(tokenizing.url, model="m", dialect="vllm") as client:
        assert len(tokenizer.encode(await client.fit(TEXT, 50))) == CONTEXT - 50
