"""The provider `myllm/…` through LiteLLM's own functions, against the real server."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import math
from typing import Any, Literal

import litellm
import pytest
from pydantic import BaseModel, Field

import myllm
import myllm_adapters.litellm  # noqa: F401 - registers the provider

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


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


def test_errors_are_litellms(chat: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 8192"):
        litellm.completion(**{**chat, "max_tokens": 100_000})
    with pytest.raises(litellm.NotFoundError, match="'nope' does not exist"):
        litellm.completion(**{**chat, "model": "myllm/nope"})
    with pytest.raises(litellm.NotFoundError, match="'nope' does not exist"):
        litellm.completion(**{**chat, "model": "myllm/nope"}, stream=True)


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


async def test_router_streams_from_the_server_that_is_there(chat: dict[str, Any], free_port: int) -> None:
    def deployment(name: str, url: str) -> dict[str, Any]:
        return {"model_name": name, "litellm_params": {"model": "myllm/smollm2", "api_base": url}}

    router = litellm.Router(
        [deployment("dead", f"http://127.0.0.1:{free_port}"), deployment("alive", chat["api_base"])],
        fallbacks=[{"dead": ["alive"]}],
        num_retries=0,
    )
    stream = await router.acompletion(
        model="dead", messages=QUESTION, max_tokens=8, temperature=0, stream=True
    )
    assert text_of([chunk async for chunk in stream]) == ANSWER


def test_batch_completion_as_in_litellm_s_vllm_page(
    server: myllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYLLM_BASE_URL", server.url)
    messages = [[{"role": "user", "content": "What is the capital of France?"}] for _ in range(5)]
    responses = litellm.batch_completion(
        model="smollm2", custom_llm_provider="myllm", messages=messages, temperature=0, max_tokens=8
    )
    assert [r.choices[0].message.content for r in responses] == [ANSWER] * 5


class Weather(BaseModel):
    city: str = Field(max_length=12)
    unit: Literal["C", "F"]


@pytest.mark.parametrize(
    "form",
    [
        Weather,
        {"type": "json_schema", "json_schema": {"name": "w", "schema": Weather.model_json_schema()}},
    ],
    ids=["class", "dict"],
)
def test_response_format_holds_the_model_to_it(chat: dict[str, Any], form: Any) -> None:
    asked = {**chat, "max_tokens": 60, "response_format": form}
    response = litellm.completion(**asked)
    assert Weather.model_validate_json(response.choices[0].message.content).unit in ("C", "F")
    chunks = list(litellm.completion(**asked, stream=True))
    assert text_of(chunks) == response.choices[0].message.content


def test_json_object_and_the_sdks_constraints(chat: dict[str, Any]) -> None:
    asked = {**chat, "max_tokens": 40}
    colour = litellm.completion(**asked, choice=["red", "green"]).choices[0].message.content
    assert colour in ("red", "green")
    digits = litellm.completion(**asked, regex="[0-9]{3}").choices[0].message.content
    assert digits.isdigit()
    assert len(digits) == 3


def test_tool_calls_whole_streamed_and_answered(chat: dict[str, Any]) -> None:
    asked = {**chat, "max_tokens": 60, "tools": [TOOL], "tool_choice": NAMED}
    asked["messages"] = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = litellm.completion(**asked).choices[0].message
    (call,) = message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}
    rebuilt = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)))
    (streamed,) = rebuilt.choices[0].message.tool_calls
    assert streamed.function.model_dump() == call.function.model_dump()
    # LiteLLM's own message goes back as it is, with the tool's result.
    result = {"role": "tool", "tool_call_id": call.id, "content": "22 C, sunny"}
    talk = [*asked["messages"], message, result]
    answer = litellm.completion(**{**chat, "messages": talk}, tools=[TOOL], tool_choice="none")
    assert answer.choices[0].message.content


async def test_embeddings_are_the_servers(server: myllm.Server) -> None:
    texts = ["red", "green"]
    asked: dict[str, Any] = {"model": "myllm/smollm2", "input": texts, "api_base": server.url}
    response = litellm.embedding(**asked)
    with server.client(model="smollm2") as client:
        direct = client.embed(texts)
    assert [entry["embedding"] for entry in response.data] == direct.vectors
    assert [entry["index"] for entry in response.data] == [0, 1]
    assert direct.usage is not None
    assert response.usage.prompt_tokens == response.usage.total_tokens == direct.usage.prompt_tokens
    assert (await litellm.aembedding(**{**asked, "input": "red"})).data[0]["embedding"] == pytest.approx(
        direct.vectors[0], abs=1e-3
    )


def test_what_costs_nothing_is_counted_so_and_warned_of_never(
    chat: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        response = litellm.completion(**chat)
        text = litellm.text_completion(
            model="myllm/smollm2", prompt="One, two,", api_base=chat["api_base"], max_tokens=2
        )
        vectors = litellm.embedding(model="myllm/smollm2", input="x", api_base=chat["api_base"])
    for answer in (response, text, vectors):
        assert answer._hidden_params["response_cost"] == 0.0
    assert litellm.completion_cost(response) == 0.0
    assert litellm.cost_per_token(model="myllm/smollm2", prompt_tokens=9, completion_tokens=9) == (0.0, 0.0)
    assert caplog.records == []
