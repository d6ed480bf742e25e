"""Check that a model whose attention would be computed wrongly is not served."""

from __future__ import annotations

import dataclasses

import pytest

from myllm_engine.attention.torch_sdpa import TorchAttention
from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.errors import ModelLoadError

run = TorchAttention.run


def narrow_window(self, call):
    return run(self, dataclasses.replace(call, window=2))


def another_scale(self, call):
    return run(self, dataclasses.replace(call, scale=call.scale * 2))


def forgotten_keys(self, call):
    """Forget what earlier steps stored, as a state that is kept elsewhere would be."""
    for group in self._groups:
        if group.pages is not None:
            group.pages.zero_()
    return run(self, call)


@pytest.mark.parametrize("attention", [narrow_window, another_scale, forgotten_keys])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_logits_than_transformers_are_noticed(tiny_model, monkeypatch, attention, dtype):
    monkeypatch.setattr("myllm_engine.models.load.make_native", lambda *_, **__: None)
    config = EngineConfig(model=str(tiny_model("llama")), dtype=dtype, device="cpu")
    assert Engine(config).vocab_size > 0
    monkeypatch.setattr(TorchAttention, "run", attention)
    with pytest.raises(ModelLoadError, match=r"answers otherwise .* logits differ by \d+%"):
        Engine(config)
