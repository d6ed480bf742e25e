"""Prompt templates registered with LiteLLM make the prompts of models that have none of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import litellm
import pytest

import myllm
import myllm_adapters.litellm  # noqa: F401 - registers the provider

ROLES = {
    "system": {"pre_message": "[INST] <<SYS>>\n", "post_message": "\n<</SYS>>\n [/INST]\n"},
    "user": {"pre_message": "[INST] ", "post_message": " [/INST]"},
    "assistant": {"pre_message": "\n", "post_message": "\n"},
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One, two,"},
    {"role": "assistant", "content": "three"},
    {"role": "user", "content": [{"type": "text", "text": "four,"}]},
]
PROMPT = (
    "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n [/INST]\n[INST] One, two, [/INST]\nthree\n[INST] four, [/INST]"
)
ANSWER = {
    "id": "cmpl-1",
    "created": 1,
    "model": "org/base",
    "choices": [{"index": 0, "text": " five", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


@pytest.fixture(autouse=True)
def _own_templates(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take what a test registers away again."""
    monkeypatch.setattr(litellm, "custom_prompt_dict", {})
    known = set(litellm.known_tokenizer_config)
    yield
    for name in set(litellm.known_tokenizer_config) - known:
        del litellm.known_tokenizer_config[name]


@pytest.fixture
def base(wire: Any) -> dict[str, Any]:
    """A chat with a model behind `wire`."""
    wire.answers(ANSWER)
    return {"model": "myllm/org/base", "messages": TALK, "api_base": wire.url, "dialect": "vllm"}


@pytest.mark.parametrize("name", ["org/base", "myllm/org/base"])
def test_a_registered_template_makes_the_prompt(base: dict[str, Any], wire: Any, name: str) -> None:
    litellm.register_prompt_template(model=name, roles=ROLES)
    response = litellm.completion(**base, max_tokens=4, top_k=2)
    (seen,) = wire.seen
    assert seen.path == "/v1/completions"
    assert seen.body == {"model": "org/base", "prompt": PROMPT, "max_tokens": 4, "top_k": 2}
    assert isinstance(response, litellm.ModelResponse)
    assert response.choices[0].message.content == " five"
    assert response.choices[0].message.role == "assistant"
    assert response.choices[0].finish_reason == "length"
    assert response.usage.total_tokens == 7


async def test_it_goes_for_streams_and_async_calls(server: myllm.Server) -> None:
    litellm.register_prompt_template(model="smollm2", roles=ROLES, initial_prompt_value="Count:\n")
    asked: dict[str, Any] = {
        "model": "myllm/smollm2", "messages": TALK, "api_base": server.url, "max_tokens": 4, "temperature": 0,
    }  # fmt: skip
    with server.client(model="smollm2") as client:
        expected = client.complete(f"Count:\n{PROMPT}", max_tokens=4, temperature=0).text
        plain = client.chat(TALK, max_tokens=4, temperature=0).text
    assert plain != expected
    chunks = list(litellm.completion(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert (await litellm.acompletion(**asked)).choices[0].message.content == expected
    stream = await litellm.acompletion(**asked, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == expected
    logprobs = litellm.completion(**asked, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert "".join(token.token for token in logprobs) == expected


def test_a_call_brings_a_template_of_its_own(base: dict[str, Any], wire: Any) -> None:
    litellm.register_prompt_template(model="org/base", roles=ROLES)
    own = {"user": {"pre_message": "Q: ", "post_message": "\n"}, "assistant": {"pre_message": "A: "}}
    litellm.completion(**base, roles=own, final_prompt_value="A:", bos_token="<s>", eos_token="</s>\n")
    assert wire.bodies[0]["prompt"] == "<s>Be brief.Q: One, two,\nA: three</s>\nQ: four,\nA:"


def test_a_jinja_template_goes_to_the_server(base: dict[str, Any], wire: Any) -> None:
    litellm.register_prompt_template(model="org/base", tokenizer_config={"chat_template": "{{ messages }}"})
    wire.answers({**ANSWER, "choices": [{"index": 0, "message": {"content": "ok"}, "finish_reason": "stop"}]})
    litellm.completion(**base)
    assert wire.seen[0].path == "/v1/chat/completions"
    assert wire.bodies[0]["chat_template"] == "{{ messages }}"
    # What LiteLLM knows of models by itself is no wish of the user's: the server has their templates.
    known = next(iter(litellm.known_tokenizer_config))
    litellm.completion(**{**base, "model": f"myllm/{known}"})
    assert "chat_template" not in wire.bodies[1]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "`tools` is for the server's chat template"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            r"`messages\[0\]` holds more than text",
        ),
    ],
)  # fmt: skip
def test_what_a_template_has_no_place_for_is_refused(
    base: dict[str, Any], wire: Any, changed: dict[str, Any], match: str
) -> None:
    litellm.register_prompt_template(model="org/base", roles=ROLES)
    with pytest.raises(litellm.BadRequestError, match=match):
        litellm.completion(**{**base, **changed})
    assert wire.seen == []
