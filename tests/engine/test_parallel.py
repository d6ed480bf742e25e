"""Check tensor parallelism with two processes on the CPU."""

from __future__ import annotations

import json
import shutil

import psutil
import pytest

from myllm_engine import EngineConfig, EngineDeadError, ModelLoadError, Request, SamplingParams
from myllm_engine.engine import Engine

PROMPTS = [[(7 * i * i + 31 * j) % 40_000 + 3 for j in range(3 + 9 * i)] for i in range(5)]


def make(folder, size: int) -> Engine:
    return Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            device="cpu",
            page_size=4,
            max_num_batched_tokens=16,
            max_num_seqs=4,
            max_model_len=64,
            tensor_parallel_size=size,
        )
    )


def run(engine: Engine):
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=2)
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(Request(prompt_token_ids=prompt, params=params, request_id=str(index)))
    results = {}
    while engine.has_unfinished():
        for output in engine.step():
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    return {name: result.outputs[0] for name, result in results.items()}


def test_two_ranks_answer_as_one_and_leave_nothing_behind(tiny_model):
    folder = tiny_model("llama")
    expected = run(make(folder, 1))
    before = set(psutil.Process().children(recursive=True))
    engine = make(folder, 2)
    try:
        [worker] = set(psutil.Process().children(recursive=True)) - before
        # Each rank keeps one of the two key heads.
        assert [tuple(keys.shape[2:]) for keys in engine._runner._cache.keys] == [(1, 16)] * 4
        for _ in range(2):
            ours = run(engine)
            for name, output in expected.items():
                assert ours[name].token_ids == output.token_ids
                assert [item.logprob for item in ours[name].logprobs] == pytest.approx(
                    [item.logprob for item in output.logprobs], abs=1e-3
                )
    finally:
        engine.close()
    assert worker.wait(timeout=10) in (0, None)


def test_a_rank_that_dies_ends_the_engine_at_once(tiny_model):
    before = set(psutil.Process().children(recursive=True))
    engine = make(tiny_model("llama"), 2)
    try:
        [worker] = set(psutil.Process().children(recursive=True)) - before
        engine.add_request(
            Request(prompt_token_ids=PROMPTS[2], params=SamplingParams(max_tokens=40, ignore_eos=True))
        )
        engine.step()
        worker.kill()
        with pytest.raises(EngineDeadError, match="Rank 1 of the tensor-parallel group ended"):
            while True:
                engine.step()
    finally:
        engine.close()


def test_a_rank_that_cannot_load_is_told_of(tiny_model, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(ModelLoadError):
        make(folder, 2)
    assert set(psutil.Process().children(recursive=True)) == before


def test_gguf_files_are_refused():
    with pytest.raises(ModelLoadError, match="use a model in Hugging Face's format"):
        make("smollm2", 2)
