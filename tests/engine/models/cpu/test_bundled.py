"""Check the bundled model on its own blocks: how near it stays to its dequantised weights, and that it is fast."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.models.cpu.model import NativeModel
from myllm_engine.request import Request, SamplingParams

from ...conftest import CHATS, PROMPTS
from .conftest import make_batch


@pytest.fixture(scope="module")
def quantized(library) -> Engine:
    """Return the bundled model as `dtype="auto"` loads it: Q4_1 and Q8_0 blocks, bfloat16 or float32 cache."""
    return Engine(EngineConfig(device="cpu", max_num_seqs=8, max_model_len=1024))


def test_weights_are_the_files_own_blocks(quantized):
    native = quantized._runner._native
    assert isinstance(native, NativeModel)
    weights = 30 * (576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536)
    assert native.num_bytes == weights * 20 // 32 + 49152 * 576 * 34 // 32


@torch.inference_mode()
def test_predictions_stay_near_those_of_dequantised_weights(quantized, dense, tokenizer):
    """What is left is the cache's rounding, where it is bfloat16; with activations in 8 bits it was 3e-3."""
    native = quantized._runner._native
    texts = [tokenizer.encode(text) for text in PROMPTS] + [tokenizer.encode_chat(chat) for chat in CHATS]
    divergence, agree, ours, theirs, count = 0.0, 0, 0.0, 0.0, 0
    for ids in texts:
        expected = torch.log_softmax(dense(torch.tensor([ids])).logits[0], dim=-1)
        pages = list(range(1, len(ids) // 16 + 2))
        logits = torch.log_softmax(native.forward(make_batch([(ids, 0, pages)], 16))[0], dim=-1)
        divergence += float((expected.exp() * (expected - logits)).sum())
        agree += int((expected.argmax(-1) == logits.argmax(-1)).sum())
        nexts = torch.tensor(ids[1:], dtype=torch.int64).unsqueeze(1)
        ours -= float(logits[:-1].gather(1, nexts).sum())
        theirs -= float(expected[:-1].gather(1, nexts).sum())
        count += len(ids)
    figures = (divergence / count, agree / count, ours / theirs)
    assert count > 1000
    assert divergence / count < 1e-4, figures
    assert agree / count > 0.99, figures
    assert abs(ours / theirs - 1) < 1e-3, figures


def test_greedy_answers_are_those_of_float32(quantized, references, tokenizer):
    """References are transformers' own; a near tie may still break another way, but not the plain question."""
    requests = [
        Request(
            prompt_token_ids=reference.prompt_token_ids,
            params=SamplingParams(temperature=0, max_tokens=len(reference.token_ids)),
        )
        for reference in references
    ]
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        quantized.add_request(request)
    while quantized.has_unfinished():
        for output in quantized.step():
            answers[output.request_id] += output.outputs[0].token_ids
    same = [
        answer == reference.token_ids for answer, reference in zip(answers.values(), references, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same), same
    question = len(PROMPTS)  # the first chat
    assert same[question]
    assert "The capital of France is Paris." in tokenizer.decode(references[question].token_ids)


@pytest.mark.slow
def test_a_busy_machine_slows_it_down_and_no_more(quantized):
    """With a competitor on every core a step may take some times longer, not tens of times."""
    native = quantized._runner._native
    batch = make_batch([([7], 63, [1, 2, 3, 4])], 16)

    def step_seconds() -> float:
        start = time.perf_counter()
        for _ in range(40):
            native.forward(batch)
        return (time.perf_counter() - start) / 40

    quiet = min(step_seconds() for _ in range(5))
    cores = len(os.sched_getaffinity(0))
    spin = "while True: pass"
    others = [subprocess.Popen([sys.executable, "-c", spin]) for _ in range(cores)]
    try:
        time.sleep(1)
        busy = step_seconds()
    finally:
        for process in others:
            process.kill()
            process.wait()
    assert busy < 12 * quiet, (quiet, busy)
