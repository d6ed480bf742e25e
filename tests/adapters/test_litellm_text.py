"""`text_completion` through LiteLLM: prompts as they are, whole and in streams."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import litellm
import pytest

import myllm
import myllm_adapters.litellm  # noqa: F401 - registers the provider
from myllm_adapters._litellm import sending

PROMPTS = ["The capital of France is", "One, two, three,"]
ANSWER = {
    "id": "cmpl-1",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "text": "!", "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


@pytest.fixture
def text(server: myllm.Server) -> dict[str, Any]:
    """A greedy continuation of few tokens."""
    return {"model": "myllm/smollm2", "api_base": server.url, "max_tokens": 4, "temperature": 0}


def test_text_completion_continues_each_prompt(text: dict[str, Any], server: myllm.Server) -> None:
    response = litellm.text_completion(prompt=PROMPTS, **text, logprobs=1)
    assert isinstance(response, litellm.TextCompletionResponse)
    with server.client(model="smollm2") as client:
        direct = [client.complete(p, max_tokens=4, temperature=0, logprobs=1) for p in PROMPTS]
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


def test_echo_and_best_of_are_the_servers(text: dict[str, Any], server: myllm.Server) -> None:
    asked = {"max_tokens": 4, "echo": True, "logprobs": 1, "best_of": 2, "temperature": 1.0, "seed": 5}
    response = litellm.text_completion(prompt=PROMPTS[1], **{**text, **asked})
    with server.client(model="smollm2") as client:
        direct = client.complete(PROMPTS[1], **asked)
    assert response.choices[0].text == direct.text
    assert response.choices[0].text.startswith(PROMPTS[1])
    tokens = response.choices[0].logprobs
    assert "".join(tokens.tokens) == response.choices[0].text
    assert tokens.token_logprobs[0] is None  # nothing comes before the first token
    assert len(response.choices) == 1
    assert direct.usage is not None
    assert response.usage.completion_tokens == direct.usage.completion_tokens


def test_a_stream_of_several_prompts_numbers_their_choices_through(text: dict[str, Any]) -> None:
    whole = litellm.text_completion(prompt=PROMPTS, **text, n=2)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    chunks = list(
        litellm.text_completion(
            prompt=PROMPTS, **text, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    for index, choice in enumerate(whole.choices):
        parts = [c.choices[0].text or "" for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(parts) == choice.text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


async def test_an_async_stream_of_several_prompts(text: dict[str, Any]) -> None:
    whole = await litellm.atext_completion(prompt=PROMPTS, **text)
    stream = await litellm.atext_completion(prompt=PROMPTS, **text, stream=True)
    chunks = [chunk async for chunk in stream]
    for index, choice in enumerate(whole.choices):
        parts = [c.choices[0].text or "" for c in chunks if c.choices[0].index == index]
        assert "".join(parts) == choice.text


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_streams_that_are_open_are_closed_when_another_is_refused(
    wire: Any, asynchronous: bool
) -> None:
    ended, others = threading.Event(), threading.Event()

    def handler(seen: Any, reply: Any) -> None:
        if seen.body["prompt"] == "bad":
            others.wait(5)
            reply.json({"error": {"message": "no such thing"}}, 400)
            return
        reply.start_stream()
        reply.piece(f"data: {json.dumps({**ANSWER, 'usage': None})}\n\n")
        others.set()
        reply.set_when_left(ended)

    wire.handler = handler
    request: Any = {"model": "myllm/m", "prompt": ["good", "bad"], "api_base": wire.url, "dialect": "vllm"}
    with pytest.raises(litellm.BadRequestError, match="no such thing"):
        if asynchronous:
            async for _ in await litellm.atext_completion(**request, stream=True):
                pass
        else:
            litellm.text_completion(**request, stream=True)
    assert await asyncio.to_thread(ended.wait, 5)


def test_a_stream_takes_so_many_prompts(wire: Any) -> None:
    prompts = ["x"] * (sending.PROMPTS_AT_ONCE + 1)
    with pytest.raises(litellm.BadRequestError, match="33 texts; a stream takes 32 at most"):
        litellm.text_completion(
            model="myllm/m", prompt=prompts, api_base=wire.url, dialect="vllm", stream=True
        )
    assert wire.seen == []


def test_log_probabilities_that_a_stream_cannot_carry_are_refused_or_dropped(wire: Any) -> None:
    wire.streams(f"data: {json.dumps(ANSWER)}\n\n", "data: [DONE]\n\n")
    request: Any = {
        "model": "myllm/m", "prompt": "hi", "api_base": wire.url, "dialect": "vllm", "logprobs": 2, "stream": True,
    }  # fmt: skip
    with pytest.raises(litellm.UnsupportedParamsError, match="streams of text carry no log-probabilities"):
        litellm.text_completion(**request)
    assert wire.seen == []
    chunks = list(litellm.text_completion(**request, drop_params=True))
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == "!"
    assert "logprobs" not in wire.bodies[0]


def test_text_completion_speaks_of_prompts(wire: Any) -> None:
    wire.answers(ANSWER)
    response = litellm.text_completion(
        model="myllm/m", prompt="hi", api_base=wire.url, dialect="vllm", suffix=".", echo=True
    )
    assert wire.seen[0].path == "/v1/completions"
    assert wire.bodies == [{"model": "m", "prompt": "hi", "suffix": ".", "echo": True}]
    assert response.choices[0].text == "!"


async def test_a_failed_prompt_ends_the_others(wire: Any) -> None:
    started, closed = threading.Event(), threading.Event()

    def handler(seen: Any, reply: Any) -> None:
        if seen.body["prompt"] == "slow":
            started.set()
            reply.set_when_left(closed)
        else:
            started.wait(5)
            reply.json({"error": {"message": "no such thing"}}, 400)

    wire.handler = handler
    before = asyncio.all_tasks()
    with pytest.raises(litellm.BadRequestError, match="no such thing") as caught:
        await litellm.atext_completion(
            model="myllm/m", prompt=["slow", "bad"], api_base=wire.url, dialect="vllm"
        )
    assert not isinstance(caught.value.__cause__, ExceptionGroup)
    assert not [t for t in asyncio.all_tasks() - before if "complete" in t.get_coro().__qualname__]
    assert await asyncio.to_thread(closed.wait, 5)


def test_after_a_failed_prompt_no_other_is_sent(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "PROMPTS_AT_ONCE", 2)

    def handler(seen: Any, reply: Any) -> None:
        if seen.body["prompt"] == "slow":
            time.sleep(0.3)
        reply.json({"error": {"message": "no such thing"}}, 400)

    wire.handler = handler
    with pytest.raises(litellm.BadRequestError, match="no such thing"):
        litellm.text_completion(
            model="myllm/m", prompt=["slow", "bad", *"abcdefgh"], api_base=wire.url, dialect="vllm"
        )
    assert len(wire.seen) <= 3  # the two at once, and one that a free thread may have taken already
