"""Check the offline front."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from myllm_engine import llm as module
from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig
from myllm_engine.errors import ContextLengthError, EngineDeadError, InvalidRequestError
from myllm_engine.llm import LLM
from myllm_engine.request import Request, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=6)
LONG = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
CONVERSATION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def llm(async_engine: AsyncEngine) -> Iterator[LLM]:
    """An LLM on the shared model: loading another would take seconds."""
    llm = LLM.__new__(LLM)
    llm.engine, llm.tokenizer = async_engine, async_engine.tokenizer
    yield llm
    assert until(lambda: is_idle(llm))


def is_idle(llm: LLM) -> bool:
    stats = llm.engine.stats()
    return stats.num_running == stats.num_waiting == 0


def until(true: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_generate_returns_whole_texts_in_order(llm):
    results = llm.generate(
        ["The sea", llm.tokenizer.encode("def f(x):")], [GREEDY, SamplingParams(max_tokens=3)]
    )
    assert [result.prompt_token_ids for result in results] == [
        llm.tokenizer.encode("The sea"),
        llm.tokenizer.encode("def f(x):"),
    ]
    assert [len(result.outputs[0].token_ids) for result in results] == [6, 3]
    assert all(result.finished for result in results)
    (again,) = llm.generate("The sea", GREEDY)
    assert again.outputs == results[0].outputs
    assert again.outputs[0].text == llm.tokenizer.decode(again.outputs[0].token_ids)


def test_all_forms_of_a_prompt_are_one_prompt(llm):
    ids = llm.tokenizer.encode("The sea")
    forms = ["The sea", ids, tuple(ids), {"prompt": "The sea"}, {"prompt_token_ids": ids, "cache_salt": "s"}]
    results = llm.generate(forms, GREEDY)
    assert all(result.outputs == results[0].outputs for result in results)
    for form in ("The sea", ids, {"prompt": "The sea"}):
        (alone,) = llm.generate(form, GREEDY)
        assert alone.outputs == results[0].outputs
    assert llm.generate([], GREEDY) == []


def test_what_is_given_for_each_prompt_reaches_its_request(llm, monkeypatch):
    seen: list[Request] = []
    gather = llm.engine.gather
    monkeypatch.setattr(llm.engine, "gather", lambda requests: seen.extend(requests) or gather([]))
    prompts = [{"prompt": "a", "cache_salt": "one"}, "b"]
    llm.generate(prompts, GREEDY, lora=["sql", None], priority=[1, -1])
    llm.generate(prompts, lora="sql", priority=3)
    llm.chat([CONVERSATION] * 2, [GREEDY, LONG], lora=[None, "sql"], priority=[0, 5])
    told = [(request.cache_salt, request.lora, request.priority, request.params) for request in seen]
    assert told == [
        ("one", "sql", 1, GREEDY),
        (None, None, -1, GREEDY),
        ("one", "sql", 3, SamplingParams()),
        (None, "sql", 3, SamplingParams()),
        (None, None, 0, GREEDY),
        (None, "sql", 5, LONG),
    ]


def test_chat(llm):
    params = SamplingParams(temperature=0, max_tokens=12)
    (one,) = llm.chat(CONVERSATION, params)
    assert one.outputs[0].text == "The capital of France is Paris."
    assert [result.outputs for result in llm.chat([CONVERSATION] * 2, params)] == [one.outputs] * 2
    assert llm.chat([], params) == []


def test_chat_hands_everything_to_the_template(llm):
    template = "{{ greeting }}{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | length }}"
    (result,) = llm.chat(
        CONVERSATION,
        GREEDY,
        chat_template=template,
        chat_template_kwargs={"greeting": "Hi! "},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
    )
    assert llm.tokenizer.decode(result.prompt_token_ids) == "Hi! What is the capital of France?1"
    conversation = [*CONVERSATION, {"role": "assistant", "content": "The capital"}]
    (result,) = llm.chat(conversation, GREEDY, add_generation_prompt=False, continue_final_message=True)
    assert llm.tokenizer.decode(result.prompt_token_ids, skip_special_tokens=False).endswith("The capital")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[1], [1] * 9000],), ContextLengthError, "maximum context length"),
        (([[1], [10**7]],), InvalidRequestError, "`prompt` holds token id 10000000"),
        ((["a", "b"], [GREEDY]), InvalidRequestError, "2 prompts came with 1 values of `sampling_params`"),
        (({"text": "a"},), InvalidRequestError, "A prompt holds `text`; known are `cache_salt`, `prompt`"),
        (({"prompt": "a", "prompt_token_ids": [1]},), InvalidRequestError, "either `prompt`"),
        (([{}],), InvalidRequestError, "either `prompt`"),
        ((["a", ""],), InvalidRequestError, "The prompt is empty"),
        (([3.5],), InvalidRequestError, "A prompt must be a text, token ids or a dict; got 3.5"),
    ],
)
def test_a_bad_prompt_stops_all_of_them(llm, arguments, error, message):
    before = llm.engine.stats().prompt_tokens_total
    with pytest.raises(error, match=re.escape(message)):
        llm.generate(*arguments)
    assert llm.engine.stats().prompt_tokens_total == before


def test_priorities_and_adapters_come_one_per_prompt(llm):
    with pytest.raises(InvalidRequestError, match="1 prompts came with 2 values of `priority`"):
        llm.generate("a", GREEDY, priority=[1, 2])
    with pytest.raises(InvalidRequestError, match="1 prompts came with 0 values of `lora`"):
        llm.generate("a", GREEDY, lora=[])


def test_the_bar_shows_prompts_and_tokens_a_second(llm, capsys):
    llm.generate(["a", "b"], GREEDY, use_tqdm=True)
    last = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert re.search(r"Processed prompts: 100%.*2/2", last)
    tokens_in, tokens_out = map(float, re.search(r"in ([\d.]+) tok/s, out ([\d.]+) tok/s", last).groups())
    assert tokens_out / tokens_in == pytest.approx(12 / 2, rel=0.1)


def test_without_a_terminal_there_is_no_bar_unless_asked_for(llm, capsys, monkeypatch):
    llm.generate("a", GREEDY)
    llm.generate("a", GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "_is_seen", lambda: True)
    llm.chat(CONVERSATION, GREEDY)
    assert "Processed prompts" in capsys.readouterr().err


def test_ctrl_c_ends_the_call_and_leaves_the_llm_usable(llm, monkeypatch):
    def interrupt(_: object) -> None:
        if llm.engine.stats().num_running:
            raise KeyboardInterrupt

    monkeypatch.setattr(module._Progress, "refresh", interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Once"] * 3, LONG)
    assert until(lambda: is_idle(llm))
    monkeypatch.undo()
    assert len(llm.generate("Once", GREEDY)[0].outputs[0].token_ids) == 6


def test_threads_share_the_engine(llm):
    prompts = ["The sea", "A cat", "def f(x):", "1, 2, 3,"]
    expected = {prompt: llm.generate(prompt, GREEDY)[0].outputs for prompt in prompts}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda prompt: llm.generate([prompt] * 2, GREEDY), prompts))
    for prompt, answers in zip(prompts, results, strict=True):
        assert [answer.outputs for answer in answers] == [expected[prompt]] * 2


def test_closing_ends_calls_with_an_error(tiny_model):
    with LLM(str(tiny_model("llama")), device="cpu", dtype="float32", max_num_seqs=4) as llm:
        assert llm.engine.config == EngineConfig(
            model=llm.engine.config.model, device="cpu", dtype="float32", max_num_seqs=4
        )
        threading.Timer(0.2, llm.close).start()
        with pytest.raises(EngineDeadError, match="The engine is closed"):
            llm.generate(["a"] * 4, SamplingParams(max_tokens=400, ignore_eos=True))
        with pytest.raises(EngineDeadError, match="The engine is closed"):
            llm.generate("a")
    llm.close()


def test_embed_equals_transformers(llm, dense):
    prompts = ["The sea is calm.", "A storm at sea", "def f(x):"]
    for pooling in ("last", "mean"):
        for prompt, result in zip(prompts, llm.embed(prompts, pooling=pooling), strict=True):
            with torch.inference_mode():
                ids = torch.tensor([llm.tokenizer.encode(prompt)])
                hidden = dense.base_model(ids).last_hidden_state[0]
            pooled = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
            expected = torch.nn.functional.normalize(pooled, dim=0)
            torch.testing.assert_close(torch.tensor(result.embedding), expected, atol=1e-3, rtol=1e-2)
            assert result.outputs == []
    with pytest.raises(InvalidRequestError, match="`pooling` must be 'last' or 'mean'"):
        llm.embed(prompts, pooling="max")
