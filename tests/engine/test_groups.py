"""Check what requests with several sequences, prompt log-probabilities or embeddings hand out."""

from __future__ import annotations

import pytest
import torch

from myllm_engine import ContextLengthError, EngineConfig, Repetition, Request, SamplingParams
from myllm_engine.engine import Engine

PROMPT = [11, 400, 7, 9000, 31, 2500, 18, 77, 1200, 5, 640, 33, 21, 8, 90, 17, 4000, 3, 250, 61, 700]


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """Return a tiny engine that reads prompts in chunks of 8 tokens, and transformers' model of the same."""
    from transformers import AutoModelForCausalLM

    folder = tiny_model("llama")
    engine = Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            page_size=4,
            max_num_batched_tokens=8,
            max_num_seqs=8,
        )
    )
    return engine, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def run(engine: Engine, *requests: Request):
    for request in requests:
        engine.add_request(request)
    results, streams = {}, {}
    while engine.has_unfinished():
        for output in engine.step():
            streams.setdefault(output.request_id, []).append(len(output.outputs))
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total
    return [results[request.request_id] for request in requests], streams


def test_prompt_logprobs_equal_transformers_and_do_not_depend_on_the_cache(tiny):
    engine, model = tiny
    params = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=3, n=2)
    requests = [Request(prompt_token_ids=PROMPT, params=params) for _ in range(2)]
    for result in [*run(engine, requests[0])[0], *run(engine, requests[1])[0]]:
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([PROMPT])).logits[0].float(), dim=-1)
        assert result.prompt_logprobs[0] is None
        assert len(result.prompt_logprobs) == len(PROMPT)
        for place, entry in enumerate(result.prompt_logprobs[1:], start=1):
            row = expected[place - 1]
            assert entry.token_id == PROMPT[place]
            assert entry.logprob == pytest.approx(float(row[PROMPT[place]]), abs=1e-3)
            assert entry.rank == int((row > row[PROMPT[place]]).sum()) + 1
            values, ids = row.topk(3)
            assert [token for token, _ in entry.top] == ids.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-3)


def test_prompt_logprobs_are_cut_by_the_room_for_logits(tiny):
    engine, _ = tiny
    whole, _ = run(
        engine, Request(prompt_token_ids=PROMPT, params=SamplingParams(max_tokens=1, prompt_logprobs=0))
    )
    engine._scheduler.max_num_logits = 3
    try:
        cut, _ = run(
            engine, Request(prompt_token_ids=PROMPT, params=SamplingParams(max_tokens=1, prompt_logprobs=0))
        )
    finally:
        engine._scheduler.max_num_logits = 256
    for ours, theirs in zip(cut[0].prompt_logprobs[1:], whole[0].prompt_logprobs[1:], strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
def test_a_prompt_can_be_read_without_a_completion(tiny, prompt):
    engine, _ = tiny
    read = SamplingParams(max_tokens=0, prompt_logprobs=2, n=2)
    one = SamplingParams(max_tokens=1, prompt_logprobs=2)
    (ours, theirs), _ = run(
        engine,
        Request(prompt_token_ids=prompt, params=read),
        Request(prompt_token_ids=prompt, params=one, cache_salt="other"),
    )
    assert ours.finished
    assert [(item.index, item.text, item.token_ids) for item in ours.outputs] == [(0, "", []), (1, "", [])]
    assert {item.finish_reason for item in ours.outputs} == {"length"}
    assert len(ours.prompt_logprobs) == len(prompt)
    for entry, expected in zip(ours.prompt_logprobs[1:], theirs.prompt_logprobs[1:], strict=True):
        assert (entry.token_id, entry.rank) == (expected.token_id, expected.rank)
        assert entry.logprob == pytest.approx(expected.logprob, abs=1e-4)


def test_a_prompt_may_fill_the_context_when_nothing_follows(tiny):
    engine, _ = tiny
    longest = [5] * engine.max_model_len
    (result,), _ = run(engine, Request(prompt_token_ids=longest, params=SamplingParams(max_tokens=0)))
    assert result.finished
    with pytest.raises(ContextLengthError, match=r"requested 513 tokens in the prompt\. Please shorten"):
        engine.prepare(Request(prompt_token_ids=[*longest, 5], params=SamplingParams(max_tokens=0)))


def test_best_of_nothing_ends(tiny):
    engine, _ = tiny
    (result,), _ = run(
        engine, Request(prompt_token_ids=PROMPT, params=SamplingParams(max_tokens=0, n=2, best_of=3))
    )
    assert [item.token_ids for item in result.outputs] == [[], []]


def test_tokens_of_the_users_choice_are_reported(tiny):
    engine, _ = tiny
    wanted = [700, 3, 9000]
    both = {"temperature": 0.0, "max_tokens": 3, "ignore_eos": True}
    (chosen, everything), _ = run(
        engine,
        Request(prompt_token_ids=PROMPT, params=SamplingParams(**both, logprobs=1, logprob_token_ids=wanted)),
        Request(prompt_token_ids=PROMPT, params=SamplingParams(**both, logprobs=engine.vocab_size)),
    )
    pairs = zip(chosen.outputs[0].logprobs, everything.outputs[0].logprobs, strict=True)
    for ours, theirs in pairs:
        of_all = dict(theirs.top)
        expected = sorted(((of_all[token], token) for token in wanted), reverse=True)
        assert [token for token, _ in ours.top] == [token for _, token in expected]
        assert [value for _, value in ours.top] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert (ours.token_id, ours.rank) == (theirs.token_id, 1)


def test_a_completion_that_repeats_itself_is_ended(tiny):
    engine, _ = tiny
    loop = SamplingParams(
        temperature=0.0,
        max_tokens=30,
        ignore_eos=True,
        logit_bias={700: 1e9},
        repetition=Repetition(max_pattern_size=2, min_pattern_size=2, min_count=3),
    )
    (result,), _ = run(engine, Request(prompt_token_ids=[700] * 9, params=loop))
    [output] = result.outputs
    assert output.token_ids == [700] * 6  # the prompt's do not count
    assert (output.finish_reason, output.stop_reason) == ("repetition", "repetition_detected")


def test_best_of_returns_the_likeliest_a_token(tiny):
    engine, _ = tiny
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=6, ignore_eos=True, logprobs=0)
    everything = SamplingParams(**{**vars_of(params), "n": 5})
    best = SamplingParams(**{**vars_of(params), "n": 2, "best_of": 5, "logprobs": None})
    (all_five, ranked), streams = run(
        engine,
        Request(prompt_token_ids=PROMPT, params=everything, request_id="all"),
        Request(prompt_token_ids=PROMPT, params=best, request_id="best"),
    )
    means = {
        tuple(output.token_ids): sum(item.logprob for item in output.logprobs) / 6
        for output in all_five.outputs
    }
    order = sorted(means, key=means.get, reverse=True)
    assert [tuple(output.token_ids) for output in ranked.outputs] == order[:2]
    assert [output.index for output in ranked.outputs] == [0, 1]
    assert all(output.logprobs is None for output in ranked.outputs)
    assert streams["best"] == [2]


def vars_of(params: SamplingParams) -> dict:
    return {
        name: getattr(params, name)
        for name in ("temperature", "seed", "max_tokens", "ignore_eos", "logprobs")
    }


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_embeddings_equal_transformers(tiny, pooling):
    engine, model = tiny
    prompts = [PROMPT, PROMPT[:5], PROMPT + PROMPT[::-1]]
    results, _ = run(engine, *(Request(prompt_token_ids=ids, pooling=pooling) for ids in prompts))
    again, _ = run(engine, *(Request(prompt_token_ids=ids, pooling=pooling) for ids in prompts))
    for ids, result, cached in zip(prompts, results, again, strict=True):
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden.mean(dim=0)
        expected = torch.nn.functional.normalize(pooled, dim=0)
        assert result.finished
        assert result.outputs == []
        torch.testing.assert_close(torch.tensor(result.embedding), expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(torch.tensor(cached.embedding), expected, atol=1e-4, rtol=1e-3)


def test_embeddings_and_completions_share_a_batch(tiny):
    engine, _ = tiny
    greedy = SamplingParams(temperature=0.0, max_tokens=4)
    (alone,), _ = run(engine, Request(prompt_token_ids=PROMPT[:9], params=greedy))
    (mixed, embedded), _ = run(
        engine,
        Request(prompt_token_ids=PROMPT[:9], params=greedy),
        Request(prompt_token_ids=PROMPT[9:], pooling="mean"),
    )
    assert mixed.outputs[0].token_ids == alone.outputs[0].token_ids
    assert len(embedded.embedding) == 64


def test_a_shared_beginning_is_computed_once(tiny):
    engine, _ = tiny
    params = SamplingParams(temperature=0.0, max_tokens=3)
    fresh = [token + 1 for token in PROMPT]
    (first,), _ = run(engine, Request(prompt_token_ids=fresh, params=params))
    (second,), _ = run(engine, Request(prompt_token_ids=[*fresh, 5], params=params))
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 20)
    (salted,), _ = run(engine, Request(prompt_token_ids=fresh, params=params, cache_salt="mine"))
    assert salted.num_cached_tokens == 0
    assert salted.outputs[0].token_ids == first.outputs[0].token_ids
