"""DSPy 3 programs on a real engine, through the adapter."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import ContextWindowExceededError, LMUnsupportedModelError

import myllm
from myllm_adapters.dspy import LM, HFClientTGI, HFClientVLLM

pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning")

# The bundled model is small: one example shows it DSPy's format.
EXAMPLE = dspy.Example(
    question="What is the capital of Spain?", reasoning="The capital of Spain is Madrid.", answer="Madrid"
)
FRANCE = "What is the capital of France?"


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    dspy.configure_cache(enable_disk_cache=False)


@pytest.fixture(scope="session")
def lm(server: myllm.Server) -> HFClientVLLM:
    return HFClientVLLM("smollm2", server.port, temperature=0, max_tokens=60)


def chain_of_thought() -> dspy.ChainOfThought:
    program = dspy.ChainOfThought("question -> answer")
    program.predict.demos = [EXAMPLE]
    return program


def predict() -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.demos = [EXAMPLE.without("reasoning")]
    return program


def test_chain_of_thought(lm: HFClientVLLM) -> None:
    with dspy.context(lm=lm, track_usage=True):
        prediction = chain_of_thought()(question=FRANCE)
    assert prediction.reasoning
    assert "Paris" in prediction.answer
    usage = prediction.get_lm_usage()["smollm2"]
    assert usage["prompt_tokens"] > 50
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_chain_of_thought_without_an_example(server: myllm.Server) -> None:
    """The model does not keep to ChatAdapter's format; JSONAdapter's schema, which the engine enforces, does
    the rest."""
    lm = HFClientVLLM("smollm2", server.port, temperature=0, max_tokens=60)
    with dspy.context(lm=lm):
        prediction = dspy.ChainOfThought("question -> answer")(question=FRANCE)
    assert prediction.reasoning
    assert prediction.answer
    assert ["response_format" in entry["kwargs"] for entry in lm.history] == [False, True]
    (output,) = lm.history[-1]["outputs"]
    assert json.loads(output) == {"reasoning": prediction.reasoning, "answer": prediction.answer}


async def test_chain_of_thought_async(lm: HFClientVLLM) -> None:
    with dspy.context(lm=lm):
        prediction = await chain_of_thought().acall(question=FRANCE)
    assert prediction.reasoning
    assert "Paris" in prediction.answer


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_streamify(lm: HFClientVLLM, asynchronous: bool) -> None:
    listener = dspy.streaming.StreamListener("answer")
    program = dspy.streamify(predict(), stream_listeners=[listener], is_async_program=asynchronous)
    chunks, final = [], None
    with dspy.context(lm=lm):
        async for part in program(question=FRANCE):
            if isinstance(part, dspy.streaming.StreamResponse):
                chunks.append(part.chunk)
            else:
                final = part
    assert final is not None
    assert "Paris" in final.answer
    assert "".join(chunks).strip() == final.answer


async def test_a_streamed_answer_is_the_whole_answer(lm: HFClientVLLM) -> None:
    request = lm15.Request(
        "smollm2",
        (lm15.Message.user("Name three colours."),),
        config=lm15.Config(max_tokens=12, temperature=0, logprobs=1),
    )
    whole = await asyncio.to_thread(lm.engine.complete, request)
    streamed = lm15.materialize_response(lm.engine.stream(request), request)
    assert streamed.message.text == whole.message.text
    assert streamed.finish_reason == whole.finish_reason == "length"
    assert streamed.usage.output_tokens == whole.usage.output_tokens == 12
    assert whole.logprobs is not None
    assert streamed.logprobs is not None
    assert [t.token for t in streamed.logprobs] == [t.token for t in whole.logprobs]
    assert "".join(t.token for t in whole.logprobs) == whole.message.text


def test_n_is_one_prompt(lm: HFClientVLLM) -> None:
    """The prompt is paid once: one request, three different answers."""
    texts = lm("Tell me a story.", n=3, temperature=1.0, seed=5, max_tokens=8, cache=False)
    assert len(set(texts)) == 3
    alone = lm.copy()
    alone("Tell me a story.", max_tokens=8, cache=False)
    assert lm.history[-1]["usage"]["prompt_tokens"] == alone.history[-1]["usage"]["prompt_tokens"]
    assert lm.history[-1]["usage"]["completion_tokens"] == 24


def test_sampling_parameters_act(lm: HFClientVLLM) -> None:
    """At temperature 1, `top_k=1` leaves only what greedy decoding takes."""
    greedy = lm("Tell me a story.", max_tokens=10)
    assert lm("Tell me a story.", max_tokens=10, temperature=1.0, top_k=1, seed=1) == greedy
    assert lm("Tell me a story.", max_tokens=10, logit_bias={0: -100}, min_p=1.0, temperature=1.0) == greedy
    assert lm("Tell me a story.", max_tokens=10, repetition_penalty=2.0) != greedy


def test_generic_client_and_tgi(server: myllm.Server) -> None:
    with dspy.context(lm=LM(myllm.Client(server.url, temperature=0), max_tokens=60)):
        assert "Paris" in predict()(question=FRANCE).answer
    tgi = HFClientTGI("smollm2", server.port, temperature=0, max_tokens=60)
    with dspy.context(lm=tgi):
        assert "Paris" in predict()(question=FRANCE).answer


def test_tgi_generates_at_the_chat_or_the_text_endpoint(server: myllm.Server) -> None:
    tgi = HFClientTGI("smollm2", server.port, temperature=0, max_tokens=12)
    assert tgi._generate(FRANCE)["choices"][0]["text"] == "The capital of France is Paris."
    assert "Paris" in tgi._generate("The capital of France is", typical_p=0.9)["choices"][0]["text"]
    text = tgi.copy(model_type="text")
    assert text._generate("The capital of France is")["choices"][0]["text"].lstrip().startswith("Paris")


def test_generate(lm: HFClientVLLM) -> None:
    answer = lm._generate(FRANCE, max_tokens=12)
    assert answer["prompt"] == FRANCE
    assert "Paris" in answer["choices"][0]["text"]


def test_many_threads(lm: HFClientVLLM) -> None:
    def ask(number: int) -> Any:
        return lm(f"Say {number}.", max_tokens=2)

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))
    assert all(text for (text,) in together)


def test_a_second_event_loop(lm: HFClientVLLM) -> None:
    for word in ("one", "two"):
        assert asyncio.run(lm.acall(f"Say {word}.", max_tokens=3))[0]


def test_the_servers_refusals(server: myllm.Server, lm: HFClientVLLM) -> None:
    with pytest.raises(ContextWindowExceededError, match="maximum context length"):
        lm("word " * 9000)
    with pytest.raises(LMUnsupportedModelError) as caught:
        lm.copy(model="other")("hello")
    assert caught.value.status == 404
    assert caught.value.request_id
