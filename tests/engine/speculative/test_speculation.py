"""Check that speculation changes nothing but the number of steps."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jsonschema
import pytest

from myllm_engine import EngineConfig, ModelLoadError, Request, SamplingParams, SpeculativeConfig, Structured
from myllm_engine.engine import Engine

REPEATS = [5, 6, 7, 8, 9, 10, 11, 12] * 6
# So that the answers are made of the prompt's tokens, and prompt lookup finds something.
FEW = dict.fromkeys(REPEATS, 100.0)
PARAMS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=2),
    "sampled": SamplingParams(temperature=0.3, top_p=0.9, seed=11, max_tokens=24, ignore_eos=True),
    "penalised": SamplingParams(
        temperature=0.0, repetition_penalty=1.2, frequency_penalty=0.5, max_tokens=24, ignore_eos=True
    ),
    "stopped": SamplingParams(temperature=0.0, max_tokens=24, min_tokens=3, stop_token_ids=[7, 8, 9]),
    "echoed": SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, prompt_logprobs=1),
    "several": SamplingParams(temperature=0.8, seed=3, n=3, max_tokens=12, ignore_eos=True),
}


@pytest.fixture(scope="module")
def make_engine(tiny_model):
    def make(speculative: SpeculativeConfig | None, kv_cache_memory: int = 2**24, **others) -> Engine:
        return Engine(
            EngineConfig(
                model=str(tiny_model("llama")),
                dtype="float32",
                device="cpu",
                page_size=4,
                max_num_batched_tokens=32,
                max_num_seqs=8,
                kv_cache_memory=kv_cache_memory,
                speculative=speculative,
                **others,
            )
        )

    return make


def run(engine: Engine):
    for name, params in PARAMS.items():
        params = dataclasses.replace(params, logit_bias=FEW)
        engine.add_request(Request(prompt_token_ids=REPEATS, params=params, request_id=name))
    results, steps = {}, 0
    while engine.has_unfinished():
        steps += 1
        for output in engine.step():
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    return results, steps


@pytest.fixture(scope="module")
def plain(make_engine):
    return run(make_engine(None))


@pytest.mark.parametrize("method", ["ngram", "draft"])
def test_outputs_are_those_without_speculation(make_engine, plain, tiny_model, method):
    model = str(tiny_model("llama")) if method == "draft" else None
    engine = make_engine(SpeculativeConfig(method=method, model=model, num_tokens=3, min_ngram=1))
    results, steps = run(engine)
    for name, expected in plain[0].items():
        ours = results[name]
        assert [(o.token_ids, o.text, o.finish_reason, o.stop_reason) for o in ours.outputs] == [
            (o.token_ids, o.text, o.finish_reason, o.stop_reason) for o in expected.outputs
        ], name
    for ours, theirs in zip(
        results["greedy"].outputs[0].logprobs, plain[0]["greedy"].outputs[0].logprobs, strict=True
    ):
        assert ours.token_id == theirs.token_id
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)
    stats = engine.stats()
    assert stats.draft_tokens_total > 0
    assert stats.kv_pages_free == stats.kv_pages_total
    if method == "draft":  # the model itself: it knows
        assert stats.accepted_tokens_total > 0.9 * stats.draft_tokens_total
        assert steps < plain[1]
    # Nothing is left of ended sequences in the draft model's pages either.
    if method == "draft":
        proposer = engine._speculator._proposer
        proposer.propose({})
        assert proposer._runner.pool.num_free == proposer._runner.pool.num_total


def test_a_right_draft_that_ends_the_text_counts(make_engine, tiny_model):
    engine = make_engine(SpeculativeConfig(method="draft", model=str(tiny_model("llama")), num_tokens=3))

    def answer(**others) -> list[int]:
        params = SamplingParams(temperature=0.0, repetition_penalty=2.0, **others)  # no token twice
        engine.add_request(Request(prompt_token_ids=REPEATS, params=params))
        tokens = []
        while engine.has_unfinished():
            for output in engine.step():
                tokens += output.outputs[0].token_ids
        return tokens

    first, second = answer(max_tokens=2, ignore_eos=True)
    assert first != second
    before = engine.stats().accepted_tokens_total
    assert answer(max_tokens=20, stop_token_ids=[second]) == [first, second]
    assert engine.stats().accepted_tokens_total == before + 1


def test_a_preempted_sequence_keeps_no_pages_of_the_draft_model(make_engine, tiny_model):
    engine = make_engine(
        SpeculativeConfig(method="draft", model=str(tiny_model("llama")), num_tokens=3),
        kv_cache_memory=2**18,
    )
    for seed in range(4):
        params = SamplingParams(temperature=0.5, seed=seed, logit_bias=FEW, max_tokens=60, ignore_eos=True)
        engine.add_request(Request(prompt_token_ids=REPEATS[:16], params=params, request_id=str(seed)))
    proposer = engine._speculator._proposer
    pool, preempted = proposer._runner.pool, 0
    while engine.has_unfinished():
        engine.step()
        waiting = list(engine._scheduler.waiting)
        preempted += any(sequence in proposer._shadows for sequence in waiting)
        proposer.propose({})
        assert not any(sequence in proposer._shadows for sequence in waiting)
        held = sum(len(shadow.pages) for shadow in proposer._shadows.values())
        assert pool.num_free == pool.num_total - held
    assert preempted


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_are_those_without_speculation(make_engine, pooling):
    # One token more than a step reads: the last chunk looks like a decode.
    prompt = (REPEATS * 2)[:33]
    embeddings = []
    for speculative in (None, SpeculativeConfig(num_tokens=3, min_ngram=1)):
        engine = make_engine(speculative)
        engine.add_request(Request(prompt_token_ids=prompt, pooling=pooling))
        outputs = []
        while engine.has_unfinished():
            outputs += engine.step()
        embeddings.append(outputs[-1].embedding)
    assert embeddings[1] == pytest.approx(embeddings[0], abs=1e-4)


SCHEMA = {
    "type": "object",
    "properties": {"temperature_in_celsius": {"enum": [1, 2, 3]}, "is_it_raining": {"type": "boolean"}},
    "required": ["temperature_in_celsius", "is_it_raining"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("speculative", [None, SpeculativeConfig(num_tokens=8)])
def test_what_a_grammar_forces_is_read_in_one_step(make_engine, speculative, temperature):
    params = SamplingParams(
        temperature=temperature, seed=5, max_tokens=60, logprobs=0, structured=Structured.json_schema(SCHEMA)
    )

    def answer(engine: Engine):
        engine.add_request(Request(prompt_token_ids=REPEATS, params=params))
        tokens, logprobs, steps = [], [], 0
        while engine.has_unfinished():
            steps += 1
            for output in engine.step():
                assert output.error is None
                tokens += output.outputs[0].token_ids
                logprobs += [item.logprob for item in output.outputs[0].logprobs]
        return tokens, logprobs, steps

    # An engine that runs ahead of its tokens has nothing to jump from: one step a token.
    one_by_one = answer(make_engine(None, async_scheduling=True))
    engine = make_engine(speculative)
    jumping = answer(engine)
    assert jumping[0] == one_by_one[0]
    assert jumping[1] == pytest.approx(one_by_one[1], abs=1e-3)
    jsonschema.validate(json.loads(engine.tokenizer.decode(jumping[0])), SCHEMA)
    assert jumping[2] < 0.75 * one_by_one[2]


def test_another_vocabulary_is_refused(make_engine, tiny_model, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(tiny_model("llama"), folder)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<repo_name>", "<repo-name>"))
    with pytest.raises(ModelLoadError, match="has another vocabulary"):
        make_engine(SpeculativeConfig(method="draft", model=str(folder)))
