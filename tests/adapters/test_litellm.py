"""The provider `myllm/…` through LiteLLM's own functions, against the real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import math
from typing import Any

import litellm
import pytest

import myllm
import myllm_adapters.litellm as adapter

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def chat(server: myllm.Server) -> dict[str, Any]:
    """A greedy question of few tokens."""
    return {
        "model": "myllm/smollm2",
        "messages": QUESTION,
        "api_base": server.url,
        "max_tokens": 8,
        "temperature": 0,
    }


@pytest.fixture
def text(server: myllm.Server) -> dict[str, Any]:
    """A greedy continuation of few tokens."""
    return {"model": "myllm/smollm2", "api_base": server.url, "max_tokens": 4, "temperature": 0}


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == index)


def test_completion_is_what_the_sdk_gets(chat: dict[str, Any], server: myllm.Server) -> None:
    response = litellm.completion(**chat)
    with server.client(model="smollm2") as client:
        direct = client.chat(QUESTION, max_tokens=8, temperature=0)
    choice = response.choices[0]
    assert choice.message.content == direct.text == ANSWER
    assert choice.finish_reason == direct.choices[0].finish_reason == "stop"
    assert direct.usage is not None
    assert response.usage.prompt_tokens == direct.usage.prompt_tokens
    assert response.usage.completion_tokens == direct.usage.completion_tokens == 8
    assert response.model == "smollm2"
    assert response._hidden_params["custom_llm_provider"] == "myllm"


async def test_acompletion(chat: dict[str, Any]) -> None:
    responses = await asyncio.gather(*(litellm.acompletion(**chat) for _ in range(3)))
    assert [r.choices[0].message.content for r in responses] == [ANSWER] * 3


def test_threads_share_a_client(chat: dict[str, Any]) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda _: litellm.completion(**chat), range(4)))
    assert {r.choices[0].message.content for r in responses} == {ANSWER}


def test_stream_adds_up_with_the_servers_usage(chat: dict[str, Any]) -> None:
    whole = litellm.completion(**chat)
    chunks = list(litellm.completion(**chat, stream=True, stream_options={"include_usage": True}))
    assert text_of([c for c in chunks if c.choices]) == ANSWER
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert len({c.id for c in chunks}) == 1
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    rebuilt = litellm.stream_chunk_builder(chunks, messages=QUESTION)
    assert rebuilt.choices[0].message.content == ANSWER
    assert rebuilt.usage.total_tokens == whole.usage.total_tokens


async def test_async_stream(chat: dict[str, Any]) -> None:
    stream = await litellm.acompletion(**{**chat, "max_tokens": 4}, stream=True)
    chunks = [chunk async for chunk in stream]
    assert ANSWER.startswith(text_of(chunks))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert chunks[-1]._hidden_params["usage"].completion_tokens == 4


def test_stream_keeps_index_and_logprobs(chat: dict[str, Any]) -> None:
    options = {"n": 2, "logprobs": True, "top_logprobs": 2, "seed": 3, "max_tokens": 4}
    chunks = list(litellm.completion(**{**chat, "temperature": 1.0, **options}, stream=True))
    whole = litellm.completion(**{**chat, "temperature": 1.0, **options})
    assert len(whole.choices) == 2
    for index, choice in enumerate(whole.choices):
        assert text_of(chunks, index) == choice.message.content
        streamed = [
            token.logprob
            for c in chunks
            if c.choices[0].index == index and getattr(c.choices[0], "logprobs", None)
            for token in c.choices[0].logprobs.content
        ]
        assert len(streamed) == 4
        for ours, theirs in zip(streamed, choice.logprobs.content, strict=True):
            assert math.isclose(ours, theirs.logprob, rel_tol=0.05, abs_tol=0.05)  # batches differ in bits
            assert len(theirs.top_logprobs) == 2


def test_text_completion_continues_each_prompt(text: dict[str, Any], server: myllm.Server) -> None:
    prompts = ["The capital of France is", "One, two, three,"]
    response = litellm.text_completion(prompt=prompts, **text, logprobs=1)
    assert isinstance(response, litellm.TextCompletionResponse)
    with server.client(model="smollm2") as client:
        direct = [client.complete(p, max_tokens=4, temperature=0, logprobs=1) for p in prompts]
    assert [c.text for c in response.choices] == [d.text for d in direct]
    assert [c.index for c in response.choices] == [0, 1]
    assert response.usage.prompt_tokens == sum(d.usage.prompt_tokens for d in direct if d.usage)
    assert "".join(response.choices[0].logprobs.tokens) == response.choices[0].text
    assert response.choices[0].logprobs.text_offset[0] == 0


async def test_atext_completion_and_its_stream(text: dict[str, Any]) -> None:
    whole = await litellm.atext_completion(prompt="One, two, three,", **text)
    stream = await litellm.atext_completion(prompt="One, two, three,", **text, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].text or "" for c in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_tgi_dialect_continues_the_same(text: dict[str, Any]) -> None:
    vllm = litellm.text_completion(prompt="One, two, three,", **text, logprobs=1)
    tgi = litellm.text_completion(prompt="One, two, three,", **text, logprobs=1, dialect="tgi")
    assert tgi.choices[0].text == vllm.choices[0].text
    assert tgi.choices[0].logprobs.tokens == vllm.choices[0].logprobs.tokens
    assert tgi.choices[0].logprobs.text_offset == vllm.choices[0].logprobs.text_offset
    chunks = litellm.text_completion(prompt="One, two, three,", **text, dialect="tgi", stream=True)
    assert "".join(c.choices[0].text or "" for c in chunks) == vllm.choices[0].text


def test_errors_are_litellms(chat: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 8192"):
        litellm.completion(**{**chat, "max_tokens": 100_000})
    with pytest.raises(litellm.NotFoundError, match="'nope' does not exist"):
        litellm.completion(**{**chat, "model": "myllm/nope"})
    with pytest.raises(litellm.NotFoundError, match="'nope' does not exist"):
        litellm.completion(**{**chat, "model": "myllm/nope"}, stream=True)
    with pytest.raises(litellm.BadRequestError, match="no embeddings"):
        litellm.embedding(model="myllm/smollm2", input=["x"], api_base=chat["api_base"])


def test_router_falls_back_from_a_dead_server(chat: dict[str, Any], free_port: int) -> None:
    def deployment(name: str, url: str) -> dict[str, Any]:
        return {"model_name": name, "litellm_params": {"model": "myllm/smollm2", "api_base": url}}

    router = litellm.Router(
        [deployment("dead", f"http://127.0.0.1:{free_port}"), deployment("alive", chat["api_base"])],
        fallbacks=[{"dead": ["alive"]}],
        num_retries=0,
    )
    response = router.completion(model="dead", messages=QUESTION, max_tokens=8, temperature=0)
    assert response.choices[0].message.content == ANSWER


def test_register_is_idempotent_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter.register()
    adapter.register()
    assert [e["custom_handler"] for e in litellm.custom_provider_map if e["provider"] == "myllm"] == [
        adapter.handler
    ]
    assert litellm.get_llm_provider("myllm/org/model")[:2] == ("org/model", "myllm")
    monkeypatch.setattr(litellm, "custom_provider_map", [])
    adapter.register()
    assert [e["provider"] for e in litellm.custom_provider_map] == ["myllm"]
