"""Check beam search in the engine against transformers' own."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from myllm_engine import EngineConfig, InvalidRequestError, Request, SamplingParams, Structured
from myllm_engine.engine import Engine

PROMPTS = [[11, 400, 7, 9000, 31, 2500, 18], [5, 640, 33], [21, 8, 90, 17, 4000, 3, 250, 61, 700, 4, 44, 1]]


@pytest.fixture(scope="module")
def tiny(tiny_model):
    from transformers import AutoModelForCausalLM

    folder = tiny_model("llama")
    config = EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        page_size=4,
        max_num_batched_tokens=16,
        max_num_seqs=8,
    )
    return Engine(config), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def run(engine: Engine, *requests: Request):
    for request in requests:
        engine.add_request(request)
    results = {}
    while engine.has_unfinished():
        for output in engine.step():
            assert output.error is None
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total
    return [results[request.request_id] for request in requests]


def beams(model, prompt, params: SamplingParams, eos: int | None = None):
    result = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        num_beams=params.num_sequences,
        num_return_sequences=params.n,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
        max_new_tokens=params.max_tokens,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=eos,
        pad_token_id=0,
    )
    completions = [row[len(prompt) :].tolist() for row in result]
    # Padding follows the end token.
    return [row[: row.index(eos) + 1] if eos in row else row for row in completions]


@pytest.mark.parametrize(
    "options",
    [
        {"n": 3},
        {"n": 1, "best_of": 4, "length_penalty": 0.5},
        {"n": 2, "best_of": 3, "early_stopping": True, "length_penalty": 2.0},
        {"n": 2, "repetition_penalty": 1.5},
    ],
)
def test_texts_equal_transformers(tiny, options):
    engine, model = tiny
    params = SamplingParams(temperature=0.0, use_beam_search=True, max_tokens=8, ignore_eos=True, **options)
    results = run(engine, *(Request(prompt_token_ids=prompt, params=params) for prompt in PROMPTS))
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert [output.token_ids for output in result.outputs] == beams(model, prompt, params)
        assert [output.index for output in result.outputs] == list(range(params.n))
        assert {output.finish_reason for output in result.outputs} == {"length"}
        assert [output.text for output in result.outputs] == [
            engine.tokenizer.decode([*prompt, *output.token_ids])[len(engine.tokenizer.decode(prompt)) :]
            for output in result.outputs
        ]


def test_end_tokens_end_beams_as_in_transformers(tiny):
    engine, model = tiny
    free = SamplingParams(temperature=0.0, use_beam_search=True, n=3, max_tokens=8, ignore_eos=True)
    for prompt in PROMPTS:
        # Tokens that beams really come to.
        end = beams(model, prompt, free)[1][4]
        params = SamplingParams(
            temperature=0.0, use_beam_search=True, n=3, max_tokens=8, ignore_eos=True, stop_token_ids=[end]
        )
        [result] = run(engine, Request(prompt_token_ids=prompt, params=params))
        expected = beams(model, prompt, params, eos=end)
        assert [output.token_ids for output in result.outputs] == expected
        reasons = ["stop" if row[-1] == end else "length" for row in expected]
        assert [output.finish_reason for output in result.outputs] == reasons


def test_other_requests_and_a_crowd_change_nothing(tiny):
    engine, _ = tiny
    search = SamplingParams(temperature=0.0, use_beam_search=True, n=2, best_of=4, max_tokens=8)
    greedy = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    alone = run(engine, Request(prompt_token_ids=PROMPTS[0], params=search))[0]
    crowd = [
        Request(prompt_token_ids=PROMPTS[index % 3], params=search if index % 2 == 0 else greedy)
        for index in range(9)
    ]
    results = run(engine, *crowd)
    assert [o.token_ids for o in results[0].outputs] == [o.token_ids for o in alone.outputs]
    assert [o.token_ids for o in results[6].outputs] == [o.token_ids for o in alone.outputs]


def test_constraints_and_stop_strings_hold_for_every_beam(tiny):
    engine, _ = tiny
    params = SamplingParams(
        temperature=0.0,
        use_beam_search=True,
        n=3,
        max_tokens=20,
        structured=Structured.choice(["red", "green", "blue", "yellow"]),
    )
    [result] = run(engine, Request(prompt_token_ids=PROMPTS[0], params=params))
    # One text may be written with other tokens.
    assert len({tuple(output.token_ids) for output in result.outputs}) == 3
    assert {output.text for output in result.outputs} <= {"red", "green", "blue", "yellow"}
    [stopped] = run(
        engine,
        Request(
            prompt_token_ids=PROMPTS[0],
            params=dataclasses.replace(params, stop=["e"], include_stop_str_in_output=True),
        ),
    )
    assert {output.text for output in stopped.outputs} <= {"re", "gre", "blue", "ye"}
    assert {output.finish_reason for output in stopped.outputs} == {"stop"}


def test_what_can_never_run_at_once_is_refused_with_numbers(tiny):
    engine, _ = tiny
    params = SamplingParams(temperature=0.0, use_beam_search=True, n=9, max_tokens=4)
    with pytest.raises(InvalidRequestError, match="beam search of 9 beams .* this engine has 8") as caught:
        engine.add_request(Request(prompt_token_ids=[1, 2], params=params))
    assert caught.value.param == "n"


def test_an_aborted_search_gives_its_pages_back(tiny):
    engine, _ = tiny
    params = SamplingParams(temperature=0.0, use_beam_search=True, n=3, max_tokens=8, ignore_eos=True)
    engine.add_request(Request(prompt_token_ids=PROMPTS[0], params=params, request_id="x"))
    for _ in range(3):
        engine.step()
    output = engine.abort("x")
    assert [item.finish_reason for item in output.outputs] == ["abort"] * 3
    assert not engine.has_unfinished()
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total


def test_a_beam_that_waits_asks_for_no_prompt_logprobs_again(tiny_model, monkeypatch):
    config = EngineConfig(
        model=str(tiny_model("llama")), dtype="float32", device="cpu", page_size=4, max_num_seqs=2
    )
    engine = Engine(config)
    forward, num_targets = engine._runner.forward, []

    def spy(batch):
        num_targets.extend(len(rows.targets) for rows in batch.prompt_rows)
        return forward(batch)

    monkeypatch.setattr(engine._runner, "forward", spy)
    search = SamplingParams(temperature=0.0, use_beam_search=True, n=2, max_tokens=4, prompt_logprobs=0)
    prompt = PROMPTS[2]
    # The other one keeps the second beam's place until it ends.
    other = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    [result, _] = run(
        engine,
        Request(prompt_token_ids=prompt, params=search),
        Request(prompt_token_ids=PROMPTS[1], params=other),
    )
    assert [item.token_id for item in result.prompt_logprobs[1:]] == prompt[1:]
    assert sum(num_targets) == len(prompt) - 1
