"""The dialects against servers of other makes, live: `MYLLM_LIVE_SERVERS="http://host:8000 …" make test-all`.

Each server must serve an instruct model with a chat template. Without the variable there is nothing to test:
what they answered when they were run is recorded in `data/recorded`, and replayed by the other tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import myllm
from myllm import Client

# `tests/conftest.py` clears the environment of MYLLM_ variables, but for this one.
SERVERS = os.environ.get("MYLLM_LIVE_SERVERS", "").split()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not SERVERS, reason="MYLLM_LIVE_SERVERS names no server")]


class City(BaseModel):
    name: str
    country: str


@pytest.fixture(params=SERVERS or ["none"])
def client(request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(request.param, timeout=120, max_retries=0) as made:
        yield made


def supported(call, *args, **kwargs):
    """Make a call, or skip where the server's dialect says before sending that the server cannot do it."""
    try:
        return call(*args, **kwargs)
    except myllm.UnsupportedFeatureError as exc:
        pytest.skip(exc.message)


def test_it_is_recognised(client):
    (info,) = client.server_info().values()
    assert isinstance(info, myllm.ServerInfo)
    assert info.dialect != "openai"
    assert info.models


def test_greedy_answers_are_the_same_streamed_and_whole(client):
    whole = client.chat("What is the capital of France?", temperature=0, max_tokens=12)
    streamed = client.stream_chat("What is the capital of France?", temperature=0, max_tokens=12).final()
    assert whole.text == streamed.text
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) in {
        ("length", 12),
        ("stop", whole.usage.completion_tokens),
    }


def test_max_tokens_and_stop_act(client):
    assert client.complete("1 2 3 4 5 6 7 8", temperature=0, max_tokens=5).usage.completion_tokens <= 5
    whole = client.complete("1 2 3 4 5 6 7 8", temperature=0, max_tokens=24).text
    stop = whole[10:13]
    stopped = client.complete("1 2 3 4 5 6 7 8", temperature=0, max_tokens=24, stop=[stop])
    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_a_seed_makes_a_sampled_answer_again(client):
    (info,) = client.server_info().values()
    if "llama-cpp-python" in info.product:
        pytest.skip("its sampled answers also depend on what it has cached (0.3.36)")

    def texts(seed: int) -> set[str]:
        return {
            client.chat("Tell me a story.", seed=seed, temperature=1.5, max_tokens=12).text for _ in range(2)
        }

    assert len(texts(1)) == 1
    assert texts(1) != texts(2)


def test_top_k_1_is_greedy(client):
    greedy = client.chat("Tell me a story.", temperature=0, max_tokens=8, repetition_penalty=1.0).text
    sampled = supported(
        client.chat,
        "Tell me a story.",
        temperature=2.0,
        top_k=1,
        max_tokens=8,
        seed=3,
        repetition_penalty=1.0,
    ).text
    assert sampled == greedy


def test_n_answers(client):
    choices = supported(client.chat, "Tell me a story.", n=3, seed=1, temperature=1.5, max_tokens=8).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.message.content for choice in choices}) > 1


def test_logprobs_have_one_shape(client):
    for choice in (
        supported(
            client.chat, "Say a word.", temperature=0, max_tokens=3, logprobs=True, top_logprobs=2
        ).choices[0],
        supported(client.complete, "Say a word.", temperature=0, max_tokens=3, logprobs=2).choices[0],
    ):
        assert choice.logprobs is not None
        for token in choice.logprobs.content or ():
            assert token.logprob <= 0
            assert [top.logprob for top in token.top_logprobs] == sorted(
                (top.logprob for top in token.top_logprobs), reverse=True
            )


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_constraints_are_enforced(client, ask):
    """What no model would say by itself; that it came is checked by the client too."""
    call = getattr(client, ask)
    assert supported(call, "Is water wet?", choice=["zebra", "giraffe"], temperature=0).text in (
        "zebra",
        "giraffe",
    )
    answer = supported(call, "Is water wet?", json_schema=City, temperature=0, max_tokens=80)
    if answer.choices[0].finish_reason == "stop":
        City.model_validate_json(answer.text)


def test_regex_and_grammar(client):
    import re

    grammar = 'root ::= "abc" | "abd"'
    assert supported(client.chat, "Is water wet?", grammar=grammar, temperature=0).text in ("abc", "abd")
    text = supported(client.chat, "Is water wet?", regex="[0-9]{3}-[0-9]{2}", temperature=0).text
    assert re.fullmatch("[0-9]{3}-[0-9]{2}", text)


def test_parse(client):
    city = supported(
        client.parse, City, "Paris is in France. Answer as JSON.", max_tokens=80, temperature=0
    ).parsed
    assert isinstance(city, City)


def test_the_tokenizer(client):
    tokens = supported(client.tokenize, "Hello world, 你好")
    assert tokens.count == len(tokens.ids or ())
    assert "Hello world" in supported(client.detokenize, tokens.ids)


def test_fit_makes_a_long_prompt_short_enough(client):
    text = supported(client.fit, "word " * 20_000, 16)
    assert client.complete(text, max_tokens=16, temperature=0).usage.completion_tokens <= 16


def test_a_prompt_that_is_too_long_is_a_context_error(client):
    with pytest.raises(myllm.ContextLengthError) as caught:
        client.chat("word " * 20_000, max_tokens=10)
    assert caught.value.limit


def test_repeated_roles_are_mended_where_the_template_refuses_them(client):
    messages = [{"role": "user", "content": "Hi."}, {"role": "user", "content": "Who are you?"}]
    assert client.with_options(message_policy="auto").chat(messages, max_tokens=4).choices


def test_a_closed_stream_frees_the_server(client):
    with client.stream_chat("Count to a thousand.", max_tokens=1000, temperature=0) as stream:
        next(stream)
    assert client.chat("Hi", max_tokens=1, timeout=60).choices
