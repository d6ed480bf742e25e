"""Check the engine against `transformers.generate`, and its own promises about scheduling and requests."""

from __future__ import annotations

import dataclasses

import pytest

from myllm_engine.engine import Engine
from myllm_engine.errors import ConstraintError, ContextLengthError, GenerationError, InvalidRequestError
from myllm_engine.request import Request, RequestOutput, SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_tokens=10)


def run(engine: Engine, requests: list[Request], *, every: int = 0) -> dict[str, RequestOutput]:
    """Run requests to the end; with `every`, one more is added each so many steps."""
    results: dict[str, RequestOutput] = {}
    todo = list(requests)
    for request in todo if not every else todo[:1]:
        engine.add_request(request)
    todo = todo[1:] if every else []
    steps = 0
    while engine.has_unfinished() or todo:
        steps += 1
        if todo and (steps % every == 0 or not engine.has_unfinished()):
            engine.add_request(todo.pop(0))
        for output in engine.step():
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.kv_pages_free == stats.kv_pages_total
    return results


def request(name: str, ids: list[int], params: SamplingParams = GREEDY) -> Request:
    return Request(prompt_token_ids=ids, params=params, request_id=name)


def check(results: dict[str, RequestOutput], references: list) -> None:
    for index, reference in enumerate(references):
        output = results[str(index)].outputs[0]
        assert output.token_ids == reference.token_ids, reference.prompt_token_ids
        assert output.finish_reason == ("stop" if output.token_ids[-1] == 2 else "length")


def test_single_requests_equal_transformers(engine, references):
    assert len(references) >= 30
    assert min(len(item.prompt_token_ids) for item in references) == 1
    assert max(len(item.prompt_token_ids) for item in references) > 300
    for reference in references:
        check({"0": run(engine, [request("x", reference.prompt_token_ids)])["x"]}, [reference])


def test_one_batch_equals_transformers(engine, references):
    params = dataclasses.replace(GREEDY, logprobs=3)
    requests = [request(str(i), item.prompt_token_ids, params) for i, item in enumerate(references)]
    results = run(engine, requests)
    check(results, references)
    for index, reference in enumerate(references):
        logprobs = results[str(index)].outputs[0].logprobs
        assert len(logprobs) == len(reference.token_ids)
        for row, logprob in zip(reference.logprobs, logprobs, strict=True):
            assert logprob.logprob == pytest.approx(float(row[logprob.token_id]), abs=1e-3)
            assert logprob.rank == 1
            values = [value for _, value in logprob.top]
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
            assert [token for token, _ in logprob.top] == row.topk(3).indices.tolist() or (
                row.topk(4).values.diff().abs().min() < 1e-4
            )


def test_interleaved_chunks_and_preemption_equal_transformers(cramped_engine, references):
    before = cramped_engine.stats().num_preemptions
    requests = [request(str(i), item.prompt_token_ids) for i, item in enumerate(references)]
    check(run(cramped_engine, requests, every=2), references)
    # The other way round and all at once: the long half waits for pages from the beginning.
    half = len(requests) // 2
    results = run(cramped_engine, list(reversed(requests[half:])))
    check({str(index): results[str(index + half)] for index in range(half)}, references[half:])
    assert cramped_engine.stats().num_preemptions > before


def test_seeded_sampling_is_the_same_alone_in_a_batch_and_after_preemption(
    engine, cramped_engine, references
):
    params = [
        SamplingParams(max_tokens=8, seed=7),
        SamplingParams(max_tokens=8, seed=8, top_k=20),
        SamplingParams(max_tokens=8, seed=9, top_p=0.9, temperature=0.8),
        SamplingParams(max_tokens=8, seed=10, min_p=0.05, repetition_penalty=1.2),
        SamplingParams(max_tokens=8, seed=-3, typical_p=0.8),
        SamplingParams(max_tokens=8, temperature=0),
    ]
    requests = [
        request(str(i), item.prompt_token_ids, params[i % len(params)])
        for i, item in enumerate(references[-12::2])
    ]
    alone = [run(engine, [item])[item.request_id].outputs for item in requests]
    together = run(engine, requests)
    cramped = run(cramped_engine, requests, every=1)
    for item, outputs in zip(requests, alone, strict=True):
        assert together[item.request_id].outputs == outputs
        assert cramped[item.request_id].outputs == outputs


def test_n_gives_different_sequences_and_seed_plus_index(engine):
    prompt = engine.tokenizer.encode("The best thing about")
    many = run(engine, [request("n", prompt, SamplingParams(n=3, seed=5, max_tokens=8))])["n"]
    assert [output.index for output in many.outputs] == [0, 1, 2]
    for index in range(3):
        one = run(engine, [request("1", prompt, SamplingParams(seed=5 + index, max_tokens=8))])["1"]
        assert one.outputs[0].token_ids == many.outputs[index].token_ids
    assert len({tuple(output.token_ids) for output in many.outputs}) == 3


def test_requests_without_a_seed_differ(engine):
    prompt = engine.tokenizer.encode("My favourite word is")
    params = SamplingParams(max_tokens=8)
    results = run(engine, [request(str(i), prompt, params) for i in range(4)])
    assert len({tuple(result.outputs[0].token_ids) for result in results.values()}) == 4


def test_stop_string_and_token(engine):
    chat = engine.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    whole = run(engine, [request("x", chat)])["x"].outputs[0]
    assert (whole.text, whole.finish_reason, whole.stop_reason) == (
        "The capital of France is Paris.",
        "stop",
        None,
    )
    assert whole.token_ids[-1] == 2
    stop = dataclasses.replace(GREEDY, stop="ce is")
    output = run(engine, [request("x", chat, stop)])["x"].outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == ("The capital of Fran", "stop", "ce is")
    kept = dataclasses.replace(GREEDY, stop=["ce is"], include_stop_str_in_output=True)
    assert run(engine, [request("x", chat, kept)])["x"].outputs[0].text == "The capital of France is"
    token = whole.token_ids[3]
    output = run(engine, [request("x", chat, dataclasses.replace(GREEDY, stop_token_ids=[token]))])[
        "x"
    ].outputs[0]
    assert (output.text, output.stop_reason) == ("The capital of", token)
    assert output.token_ids == whole.token_ids[:4]


def test_bad_words_and_allowed_tokens(engine):
    ids = engine.tokenizer.encode("The capital of France is")

    def complete(name: str, **fields) -> RequestOutput:
        return run(engine, [request(name, ids, dataclasses.replace(GREEDY, **fields))])[name]

    plain = complete("plain").outputs[0]
    word = plain.text.split()[0].strip(".,")
    without = complete("without", bad_words=[word]).outputs[0]
    assert word in plain.text
    assert word not in without.text
    only = sorted({plain.token_ids[1], plain.token_ids[0], 260})
    allowed = complete("allowed", allowed_token_ids=only).outputs[0]
    assert set(allowed.token_ids) <= set(only)
    assert allowed.token_ids[0] == plain.token_ids[0]
    # A word that is one token, and nothing else allowed.
    token = next(t for t in plain.token_ids if engine.tokenizer.encode(engine.tokenizer.decode([t])) == [t])
    failed = complete("failed", bad_words=[engine.tokenizer.decode([token])], allowed_token_ids=[token])
    assert isinstance(failed.error, ConstraintError)
    assert "`allowed_token_ids` and `bad_words`" in str(failed.error)


def test_ignore_eos_and_min_tokens(engine):
    chat = engine.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    output = run(engine, [request("x", chat, dataclasses.replace(GREEDY, ignore_eos=True))])["x"].outputs[0]
    assert len(output.token_ids) == 10
    assert output.token_ids[7] == 2
    output = run(engine, [request("x", chat, dataclasses.replace(GREEDY, min_tokens=9))])["x"].outputs[0]
    assert 2 not in output.token_ids[:9]


def test_abort_frees_pages(engine):
    engine.add_request(request("a", [5] * 100, SamplingParams(n=2)))
    engine.step()
    assert engine.stats().kv_pages_free < engine.stats().kv_pages_total
    output = engine.abort("a")
    assert output.finished
    assert [item.finish_reason for item in output.outputs] == ["abort", "abort"]
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total
    assert engine.abort("a") is None
    assert not engine.has_unfinished()


def test_a_request_that_cannot_fit_is_refused_with_numbers(engine, cramped_engine):
    with pytest.raises(ContextLengthError, match="maximum context length is 8192 tokens") as caught:
        engine.add_request(request("x", [1] * 10, SamplingParams(max_tokens=8190)))
    assert (caught.value.prompt_tokens, caught.value.max_tokens, caught.value.limit) == (10, 8190, 8192)
    assert "8200 tokens (10 in the prompt, 8190 for the completion)" in str(caught.value)
    with pytest.raises(ContextLengthError, match="at least 8193 tokens"):
        engine.add_request(request("x", [1] * 8192, SamplingParams()))
    # The KV cache of this one holds less than the model's context.
    assert cramped_engine.max_model_len == 63 * 8
    with pytest.raises(ContextLengthError, match="is 504 tokens"):
        cramped_engine.add_request(request("x", [1] * 504, SamplingParams()))


def test_max_tokens_none_runs_to_the_end_of_the_context(cramped_engine):
    output = run(cramped_engine, [request("x", [1] * 494, SamplingParams(ignore_eos=True))])["x"].outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (10, "length")


@pytest.mark.parametrize(
    ("ids", "params", "param"),
    [
        ([49152], {}, "prompt"),
        ([1], {"stop_token_ids": [60000]}, "stop_token_ids"),
        ([1], {"logit_bias": {49152: 1.0}}, "logit_bias"),
        ([1], {"allowed_token_ids": [3, 49152]}, "allowed_token_ids"),
    ],
)
def test_token_ids_out_of_the_vocabulary_are_refused(engine, ids, params, param):
    with pytest.raises(InvalidRequestError, match="49152 tokens") as caught:
        engine.add_request(request("x", ids, SamplingParams(**params)))
    assert caught.value.param == param


def test_a_request_whose_logits_are_no_numbers_fails_alone(engine, monkeypatch):
    forward = engine._runner.forward

    def broken(batch):
        logits, hidden = forward(batch)
        logits = logits.clone()
        for row, sequence in enumerate(row.sequence for row in batch.rows):
            if sequence.request.request_id == "bad" and sequence.num_output_tokens == 2:
                logits[row] = float("nan")
        return logits, hidden

    prompt = engine.tokenizer.encode("The capital of France is")
    alone = run(engine, [request("good", prompt)])["good"]
    monkeypatch.setattr(engine._runner, "forward", broken)
    results = run(engine, [request("bad", prompt, dataclasses.replace(GREEDY, n=2)), request("good", prompt)])
    assert isinstance(results["bad"].error, GenerationError)
    assert [len(output.token_ids) for output in results["bad"].outputs] == [2, 2]
    assert results["good"] == alone


def test_a_request_id_in_flight_is_refused(engine):
    engine.add_request(request("same", [1, 2]))
    with pytest.raises(InvalidRequestError, match="'same' is in flight"):
        engine.add_request(request("same", [1, 2]))
    engine.abort("same")
