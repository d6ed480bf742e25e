"""What LiteLLM is told of the models: abilities, costs, and how its cache tells calls apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import litellm
import pytest

import myllm_adapters.litellm as adapter

M = [{"role": "user", "content": "hi"}]
ANSWER = {
    "id": "chatcmpl-1",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


@pytest.fixture(autouse=True)
def _own_map() -> Iterator[None]:
    """Take what a test makes LiteLLM learn away again."""
    before = set(litellm.model_cost)
    yield
    for key in set(litellm.model_cost) - before:
        del litellm.model_cost[key]


@pytest.fixture
def ask(wire: Any) -> dict[str, Any]:
    """A call of a server that answers."""
    wire.answers(ANSWER)
    return {"messages": M, "api_base": wire.url, "dialect": "vllm"}


@pytest.mark.parametrize("model", ["myllm/never/asked", "myllm/gpt-like"])
def test_abilities_are_known_before_the_first_call(model: str) -> None:
    assert litellm.supports_function_calling(model)
    assert litellm.supports_response_schema(model)
    assert litellm.supports_parallel_function_calling(model)
    assert not litellm.supports_vision(model)
    assert litellm.get_model_info(model)["litellm_provider"] == "myllm"


# LiteLLM knows the last one as another provider's, with a price.
@pytest.mark.parametrize("model", ["myllm/some/model", "myllm/gpt-4o"])
def test_a_call_costs_nothing_and_nobody_is_warned(
    ask: dict[str, Any], wire: Any, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    # The name in the answer is the server's own, which may be any.
    wire.answers({**ANSWER, "model": "gpt-4o"})
    with caplog.at_level(logging.WARNING):
        response = litellm.completion(model=model, **ask)
    assert response._hidden_params["response_cost"] == 0.0
    assert litellm.completion_cost(response, model=model) == 0.0
    assert litellm.supports_function_calling(model)
    assert caplog.records == []


def test_what_the_user_says_of_a_model_stays(ask: dict[str, Any], wire: Any) -> None:
    wire.answers({**ANSWER, "model": "sold"})  # LiteLLM charges for the model that answered
    litellm.register_model(
        {"myllm/sold": {"litellm_provider": "myllm", "mode": "chat", "input_cost_per_token": 1.0,
                        "output_cost_per_token": 10.0, "supports_function_calling": False}}
    )  # fmt: skip
    response = litellm.completion(model="myllm/sold", **ask)
    assert response._hidden_params["response_cost"] == 3 * 1.0 + 4 * 10.0
    assert not litellm.supports_function_calling("myllm/sold")
    assert litellm.supports_response_schema("myllm/sold")
    once = litellm.completion(model="myllm/once", **ask, input_cost_per_token=2.0, output_cost_per_token=0.0)
    assert once._hidden_params["response_cost"] == 6.0


def test_a_name_that_no_server_serves_is_not_remembered(ask: dict[str, Any], wire: Any) -> None:
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "no such model"}}, 404)
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="myllm/random-1", **ask)
    assert "myllm/random-1" not in litellm.model_cost


def test_another_provider_is_described_too(ask: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litellm, "custom_provider_map", list(litellm.custom_provider_map))
    adapter.register(provider="house")
    assert litellm.supports_function_calling("house/m")
    response = litellm.completion(model="house/m", **ask)
    assert response._hidden_params["response_cost"] == 0.0


def test_the_cache_tells_calls_apart_by_all_they_say(
    ask: dict[str, Any], wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(litellm, "cache", litellm.Cache(type="local"))
    for regex in ("o.", "o.", "ok"):
        litellm.completion(model="myllm/m", **ask, extra_body={"guided_regex": regex}, caching=True, top_k=3)
    assert [body["guided_regex"] for body in wire.bodies] == ["o.", "ok"]
    litellm.completion(model="myllm/m", **ask, extra_body={"guided_regex": "ok"}, caching=True, top_k=4)
    assert wire.bodies[-1]["top_k"] == 4


def test_parameters_of_openais_that_no_server_has_are_refused_or_dropped(
    ask: dict[str, Any], wire: Any
) -> None:
    with pytest.raises(litellm.UnsupportedParamsError, match="`store`"):
        litellm.completion(model="myllm/m", **ask, store=True)
    assert wire.seen == []
    litellm.completion(model="myllm/m", **ask, store=True, drop_params=True)
    assert "store" not in wire.bodies[0]
    # A misspelt name is nobody's parameter.
    with pytest.raises(litellm.UnsupportedParamsError, match="Did you mean `repetition_penalty`"):
        litellm.completion(model="myllm/m", **ask, repitition_penalty=1.1, drop_params=True)


def test_what_litellm_keeps_from_other_providers_has_a_way_round(ask: dict[str, Any], wire: Any) -> None:
    with pytest.raises(litellm.UnsupportedParamsError, match="reasoning_effort"):
        litellm.completion(model="myllm/m", **ask, reasoning_effort="low")
    litellm.completion(
        model="myllm/m", **ask, reasoning_effort="low", allowed_openai_params=["reasoning_effort"]
    )
    assert wire.bodies[0]["reasoning_effort"] == "low"
    wire.answers({"data": [{"index": 0, "embedding": [1.0]}], "model": "m"})
    embed: Any = {"model": "myllm/m", "input": ["x"], "api_base": ask["api_base"], "dialect": "vllm"}
    with pytest.raises(litellm.UnsupportedParamsError, match="dimensions"):
        litellm.embedding(**embed, dimensions=1)
    response = litellm.embedding(**embed, extra_body={"dimensions": 1}, truncate_prompt_tokens=5)
    assert wire.bodies[1] == {"model": "m", "input": ["x"], "truncate_prompt_tokens": 5, "dimensions": 1}
    assert response.usage.prompt_tokens == 0  # the server counted nothing
    with pytest.raises(litellm.BadRequestError, match="`temperature` says how to generate"):
        litellm.embedding(**embed, temperature=1)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_parameters_that_this_server_lacks_are_refused_or_dropped(
    ask: dict[str, Any], wire: Any, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.answers({"generated_text": "ok", "details": {"finish_reason": "length", "generated_tokens": 1}})
    asked = {"model": "myllm/m", "messages": M, "api_base": ask["api_base"], "dialect": "tgi"}

    async def call(**options: Any) -> Any:
        if asynchronous:
            return await litellm.atext_completion(
                prompt="hi", **{k: v for k, v in asked.items() if k != "messages"}, **options
            )
        return litellm.text_completion(
            prompt="hi", **{k: v for k, v in asked.items() if k != "messages"}, **options
        )

    with pytest.raises(litellm.UnsupportedParamsError, match="`presence_penalty=1.0`"):
        await call(presence_penalty=1.0)
    assert [seen.path for seen in wire.seen if seen.method == "POST"] == []
    monkeypatch.setattr(litellm, "drop_params", True)
    response = await call(presence_penalty=1.0, logit_bias={5: 1}, temperature=0.5)
    assert response.choices[0].text == "ok"
    (sent,) = [seen.body["parameters"] for seen in wire.seen if seen.method == "POST"]
    assert "presence_penalty" not in sent
    assert sent["temperature"] == 0.5
