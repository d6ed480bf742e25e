"""Check the offline front."""

from __future__ import annotations

import pytest

from myllm_engine.errors import ContextLengthError, InvalidRequestError
from myllm_engine.llm import LLM
from myllm_engine.request import SamplingParams


@pytest.fixture(scope="module")
def llm(engine) -> LLM:
    llm = LLM.__new__(LLM)  # the shared model: loading another would take seconds
    llm.engine, llm.tokenizer = engine, engine.tokenizer
    return llm


def test_generate_returns_whole_texts_in_order(llm):
    greedy = SamplingParams(temperature=0, max_tokens=6)
    results = llm.generate(
        ["The sea", llm.tokenizer.encode("def f(x):")], [greedy, SamplingParams(max_tokens=3)]
    )
    assert [result.prompt_token_ids for result in results] == [
        llm.tokenizer.encode("The sea"),
        llm.tokenizer.encode("def f(x):"),
    ]
    assert [len(result.outputs[0].token_ids) for result in results] == [6, 3]
    assert all(result.finished for result in results)
    (again,) = llm.generate("The sea", greedy)
    assert again.outputs == results[0].outputs
    assert again.outputs[0].text == llm.tokenizer.decode(again.outputs[0].token_ids)


def test_chat(llm):
    conversation = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=12)
    (one,) = llm.chat(conversation, params)
    assert one.outputs[0].text == "The capital of France is Paris."
    assert [result.outputs for result in llm.chat([conversation] * 2, params)] == [one.outputs] * 2


def test_a_bad_prompt_stops_all_of_them(llm):
    with pytest.raises(ContextLengthError):
        llm.generate([[1], [1] * 9000])
    with pytest.raises(InvalidRequestError, match="2 prompts came with 1 sampling parameters"):
        llm.generate(["a", "b"], [SamplingParams()])
    assert not llm.engine.has_unfinished()
