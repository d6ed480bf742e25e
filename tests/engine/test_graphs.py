"""Check what surrounds a captured decode step: sizes, padding, and that replaying changes no logits."""

from __future__ import annotations

import pytest
import torch

from myllm_engine import graphs
from myllm_engine.batch import build_batch
from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.request import Request, SamplingParams

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1]), (2, [1, 2]), (7, [1, 2, 4, 7]), (16, [1, 2, 4, 8, 16]), (50, [1, 2, 4, 8, 16, 32, 48, 50])],
)
def test_sizes_hold_every_batch_with_little_padding(most, sizes):
    assert graphs.bucket_sizes(most) == sizes
    for count in range(1, most + 1):
        size = graphs.bucket_for(sizes, count)
        assert size in sizes
        assert count <= size < max(2 * count, count + 16)
    assert graphs.bucket_for(sizes, most + 1) is None


def test_reserved_memory_grows_with_what_is_captured():
    small = graphs.reserve_bytes(8, 1000, torch.bfloat16, 1 << 20)
    assert small >= (1 << 20) + 8 * 1000 * 2
    assert graphs.reserve_bytes(8, 1000, torch.float32, 1 << 20) == small + 8 * 1000 * 2
    assert graphs.reserve_bytes(64, 1000, torch.bfloat16, 1 << 20) > small + 56 * 1000 * 2


def test_padding_lies_in_page_0_at_fixed_addresses():
    inputs = graphs.StaticInputs(8, CPU)
    empty = build_batch([], page_size=4, device=CPU)
    batch = inputs.fill(empty, 4)
    again = inputs.fill(empty, 4)
    for name in ("input_ids", "positions", "slots", "logits_index"):
        assert getattr(batch, name).data_ptr() == getattr(again, name).data_ptr()
    assert batch.slots.tolist() == batch.positions.tolist() == [0, 0, 0, 0]
    assert batch.page_tables == [[0]] * 4
    assert batch.context_lens == batch.query_lens == [1] * 4
    assert (batch.num_decodes, batch.logits_index.tolist()) == (4, [0, 1, 2, 3])


def drain(engine, requests):
    for request in requests:
        engine.add_request(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    logprobs: dict[str, list[float]] = {request.request_id: [] for request in requests}
    while engine.has_unfinished():
        for output in engine.step():
            tokens[output.request_id] += output.outputs[0].token_ids
            logprobs[output.request_id] += [item.logprob for item in output.outputs[0].logprobs]
    return tokens, logprobs


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_padded_decodes_give_the_logits_of_unpadded_ones(tiny_model, family, monkeypatch):
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", "torch")
    config = EngineConfig(
        model=str(tiny_model(family)),
        dtype="float32",
        device="cpu",
        max_num_seqs=20,
        page_size=4,
        max_num_batched_tokens=32,
        enable_prefix_caching=False,
    )
    # Lengths apart, so that the batch shrinks through several sizes; the chunks make mixed batches too.
    params = [
        SamplingParams(temperature=0, max_tokens=2 + index, logprobs=0, ignore_eos=True)
        for index in range(11)
    ]

    def requests():
        return [
            Request(prompt_token_ids=list(range(5, 7 + 2 * index)), params=item, request_id=str(index))
            for index, item in enumerate(params)
        ]

    engine = Engine(config)
    expected = drain(engine, requests())
    runner = engine._runner
    counts = []

    def eagerly(step):
        def replay():
            counts.append(1)
            step()

        return replay

    runner._graphs = graphs.DecodeGraphs(
        torch.inference_mode()(runner._run_planned),
        runner._backend,
        max_num_seqs=20,
        vocab_size=engine.vocab_size,
        dtype=torch.float32,
        device=CPU,
        capture=eagerly,
    )
    tokens, logprobs = drain(engine, requests())
    assert len(counts) > 5
    assert tokens == expected[0]
    for name, values in logprobs.items():
        assert values == pytest.approx(expected[1][name], abs=1e-4)
