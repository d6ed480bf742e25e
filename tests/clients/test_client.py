"""The clients against the real engine: what is set arrives and acts."""

from __future__ import annotations

import pytest

import myllm
from myllm import AsyncClient, Client, HFClientTGI, HFClientVLLM

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def client(server):
    with server.client(temperature=0.0, max_tokens=16) as client:
        yield client


def test_chat(client):
    answer = client.chat(QUESTION)
    assert "Paris" in answer.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "smollm2"


def test_complete_and_stream_agree(client):
    whole = client.complete("The capital of France is")
    with client.stream_complete("The capital of France is") as stream:
        texts = [chunk.text for chunk in stream]
    assert "".join(texts) == whole.text == stream.final().text
    assert stream.final().usage == whole.usage
    assert len(texts) > 3


def test_token_ids_are_a_prompt_too(client):
    assert len(client.complete([504, 3575, 282], max_tokens=4).text) > 0


@pytest.mark.parametrize(
    ("params", "check"),
    [
        ({"max_tokens": 3}, lambda c: c.finish_reason == "length"),
        ({"stop": ["Morocco"]}, lambda c: "Morocco" not in c.text and c.stop_reason == "Morocco"),
        (
            {"stop": ["Morocco"], "include_stop_str_in_output": True},
            lambda c: c.text.endswith("Morocco"),
        ),
        ({"logit_bias": {260: -100}, "max_tokens": 8}, lambda c: " the" not in c.text),
        ({"ignore_eos": True, "max_tokens": 30}, lambda c: c.finish_reason == "length"),
    ],
)
def test_parameters_act(client, params, check):
    assert check(client.complete("Paris is the capital and largest city of", **params).choices[0])


def test_a_seed_repeats_and_temperature_varies(client):
    def say(seed):
        return client.chat("Name an animal.", temperature=1.5, seed=seed).text

    assert say(1) == say(1)
    assert len({say(seed) for seed in range(6)}) > 1


def test_n_choices(client):
    answer = client.chat("Name an animal.", n=3, temperature=1.5, seed=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_logprobs_have_one_shape(client):
    chat = client.chat(QUESTION, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    text = client.complete("The capital of France is", logprobs=2).choices[0].logprobs.content
    for token in (*chat, *text):
        assert token.logprob <= 0
        assert len(token.top_logprobs) >= 2
        # Greedy decoding takes the likeliest.
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob)


def test_tgi_says_the_same_as_openai_s_route(server, client):
    prompt = "The capital of France is"
    with server.client(dialect="tgi") as tgi:
        whole = tgi.complete(prompt, temperature=0, max_tokens=12)
        with tgi.stream_complete(prompt, temperature=0, max_tokens=12) as stream:
            assert "".join(chunk.text for chunk in stream) == whole.text
        stopped = tgi.complete(prompt, temperature=0, max_tokens=12, stop=["."])
    assert whole.text == client.complete(prompt, max_tokens=12).text
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens > 0
    assert stream.final().usage == whole.usage
    assert stopped.text == whole.text.split(".")[0]
    assert stopped.choices[0].stop_reason == "."


def test_tgi_several_sequences(server):
    with server.client(dialect="tgi") as tgi:
        two = tgi.complete("Once upon a time", n=2, temperature=1.5, max_tokens=8)
        three = tgi.complete("Once upon a time", n=3, temperature=1.5, max_tokens=8, seed=1)
    assert len({choice.text for choice in two.choices}) == 2
    assert len({choice.text for choice in three.choices}) == 3


@pytest.mark.parametrize("make", [HFClientVLLM, HFClientTGI])
def test_the_old_clients_answer(server, make):
    response = make("smollm2", server.port)._generate(QUESTION)
    assert response["prompt"] == QUESTION
    assert "Paris" in response["choices"][0]["text"]


async def test_async_client(server):
    async with AsyncClient(server.url, temperature=0.0, max_tokens=16) as client:
        assert "Paris" in (await client.chat(QUESTION)).text
        async with await client.stream_chat(QUESTION) as stream:
            texts = [chunk.text async for chunk in stream]
        assert "Paris" in "".join(texts)
        assert (await client.models())[0].id == "smollm2"


def test_errors_are_typed(server, client):
    with pytest.raises(myllm.NotFoundError, match="smollm2") as caught:
        client.chat("x", model="gpt-9")
    assert "This server serves: smollm2" in str(caught.value)
    with pytest.raises(myllm.ContextLengthError, match="maximum context length"):
        client.chat("x", max_tokens=10**6)
    with Client(server.url, dialect="tgi") as tgi, pytest.raises(myllm.ContextLengthError):
        tgi.complete("x", max_tokens=10**6)
    with pytest.raises(myllm.BadRequestError, match="temprature"):
        client.chat("x", extra_body={"temprature": 1})
