"""Check that running a step ahead changes nothing but when outputs come."""

from __future__ import annotations

import pytest

from myllm_engine import EngineConfig, Request, SamplingParams
from myllm_engine.engine import Engine

PROMPTS = [[(7 * i * i + 31 * j) % 40_000 + 3 for j in range(1 + 5 * i)] for i in range(8)]
BLIND = [
    SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True),
    SamplingParams(temperature=0.9, top_p=0.9, seed=1, max_tokens=9, n=2, logprobs=1, ignore_eos=True),
    SamplingParams(temperature=0.0, max_tokens=12, min_tokens=4),
    SamplingParams(temperature=1.0, seed=4, max_tokens=1, ignore_eos=True, prompt_logprobs=0),
    SamplingParams(max_tokens=0, prompt_logprobs=0, n=2),
]
PENALISED = SamplingParams(temperature=0.0, repetition_penalty=1.3, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def engines(tiny_model):
    return [
        Engine(
            EngineConfig(
                model=str(tiny_model("llama")),
                dtype="float32",
                device="cpu",
                page_size=4,
                max_num_batched_tokens=24,
                max_num_seqs=6,
                max_model_len=60,
                kv_cache_memory=22 * 4 * 4 * 2 * 2 * 16 * 4,  # 22 pages: forces preemptions
                async_scheduling=ahead,
            )
        )
        for ahead in (False, True)
    ]


def run(engine: Engine, params: list[SamplingParams], abort: str | None = None):
    requests = [
        Request(prompt_token_ids=prompt, params=params[index % len(params)], request_id=str(index))
        for index, prompt in enumerate(PROMPTS)
    ]
    results, steps = {}, 0
    while requests or engine.has_unfinished():
        if requests:
            engine.add_request(requests.pop(0))
        outputs = engine.step()
        steps += 1
        if steps == 6 and abort is not None:
            outputs.append(engine.abort(abort))
        for output in outputs:
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total
    return results


def texts(results):
    return {
        name: [
            (output.token_ids, output.text, output.finish_reason, output.stop_reason)
            for output in result.outputs
        ]
        for name, result in results.items()
    }


def test_outputs_are_the_same(engines):
    plain, ahead = engines
    expected, ours = run(plain, BLIND), run(ahead, BLIND)
    assert texts(ours) == texts(expected)
    assert len(expected) == len(PROMPTS)
    assert all(result.finished for result in ours.values())
    assert ahead.stats().num_preemptions > 0
    for name, result in expected.items():
        if result.prompt_logprobs is not None:
            pairs = zip(result.prompt_logprobs[1:], ours[name].prompt_logprobs[1:], strict=True)
            assert all(a.logprob == pytest.approx(b.logprob, abs=1e-4) for a, b in pairs)


def test_stop_tokens_end_a_sequence_that_is_a_step_ahead(engines):
    plain, ahead = engines
    first = texts(run(plain, BLIND[:1]))
    stops = [first[str(index)][0][0][3] for index in range(len(PROMPTS))]
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, stop_token_ids=stops)
    expected = texts(run(plain, [params]))
    assert any(reason == "stop" for [(_, _, reason, _)] in expected.values())
    assert texts(run(ahead, [params])) == expected


def test_requests_that_need_the_last_token_are_mixed_in(engines):
    plain, ahead = engines
    params = [*BLIND, PENALISED]
    assert texts(run(ahead, params)) == texts(run(plain, params))


def test_what_is_in_flight_makes_no_room_for_those_that_wait(tiny_model):
    beams = SamplingParams(temperature=0.0, use_beam_search=True, n=4, max_tokens=10, ignore_eos=True)
    single = SamplingParams(temperature=0.0, n=4, max_tokens=1, ignore_eos=True)
    results = []
    for ahead in (False, True):
        engine = Engine(
            EngineConfig(
                model=str(tiny_model("llama")),
                dtype="float32",
                device="cpu",
                page_size=4,
                max_num_seqs=4,
                kv_cache_memory=2**22,
                async_scheduling=ahead,
            )
        )
        run(engine, [single])
        assert engine.stats().num_preemptions == 0
        results.append(texts(run(engine, [beams])))
    assert results[1] == results[0]


def test_an_abort_meets_a_step_in_flight(engines):
    plain, ahead = engines
    expected, ours = run(plain, BLIND), run(ahead, BLIND, abort="2")
    assert {name: item for name, item in texts(ours).items() if name != "2"} == {
        name: item for name, item in texts(expected).items() if name != "2"
    }
    [output] = ours["2"].outputs
    assert output.finish_reason == "abort"
    assert output.token_ids == expected["2"].outputs[0].token_ids[: len(output.token_ids)]
