"""Check which attention backend an engine gets, and that engines answer the same with each."""

from __future__ import annotations

import sys

import pytest
import torch

from myllm_engine.attention.choose import AttentionNeeds, make_backend
from myllm_engine.attention.torch_sdpa import TorchAttention
from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.errors import ModelLoadError
from myllm_engine.kv_cache import KVCache, LayerShape
from myllm_engine.request import Request, SamplingParams

NEEDS = AttentionNeeds(frozenset(), max_num_seqs=4, max_model_len=64)


@pytest.fixture
def cache() -> KVCache:
    layer = LayerShape(2, 16, 16)
    return KVCache([layer], num_pages=4, page_size=4, dtype=torch.float32, device=torch.device("cpu"))


def test_a_cpu_gets_torch(cache):
    assert type(make_backend(cache, NEEDS)) is TorchAttention


def test_a_backend_can_be_named(cache, monkeypatch):
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", "torch")
    assert type(make_backend(cache, NEEDS)) is TorchAttention
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", "flash")
    with pytest.raises(ModelLoadError, match="must be one of auto, torch, triton, fa3; got 'flash'"):
        make_backend(cache, NEEDS)


def test_a_backend_that_cannot_be_used_says_why(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", "triton")
    with pytest.raises(ModelLoadError, match="'triton', which cannot be used: .*`triton` is not installed"):
        make_backend(cache, NEEDS)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", "fa3")
    with pytest.raises(ModelLoadError, match="`flash_attn_interface` is not installed"):
        make_backend(cache, NEEDS)


def test_triton_off_a_gpu_needs_its_interpreter(cache, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", "triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ModelLoadError, match="TRITON_INTERPRET=1"):
        make_backend(cache, NEEDS)


# gemma2: windows and softcap; gpt_oss: windows and sinks.
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is not on")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss"])
def test_an_engine_on_triton_answers_as_one_on_torch(tiny_model, family, monkeypatch):
    pytest.importorskip("triton")
    config = EngineConfig(
        model=str(tiny_model(family)),
        dtype="float32",
        device="cpu",
        max_num_seqs=4,
        page_size=4,
        max_model_len=64,
        max_num_batched_tokens=8,
    )
    answers = []
    for name in ("torch", "triton"):
        monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", name)
        engine = Engine(config)
        assert type(engine._runner._backend).__name__ == f"{name.capitalize()}Attention"
        assert engine._runner._native is None
        params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
        for length in (3, 12):
            engine.add_request(
                Request(prompt_token_ids=list(range(5, 5 + length)), params=params, request_id=str(length))
            )
        tokens: dict[str, list[int]] = {"3": [], "12": []}
        while engine.has_unfinished():
            for output in engine.step():
                tokens[output.request_id] += output.outputs[0].token_ids
        answers.append(tokens)
    assert answers[0] == answers[1]
    assert all(len(tokens) == 3 for tokens in answers[0].values())
