"""Check what is refused at load, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.errors import ModelLoadError
from myllm_engine.models.load import choose_device, choose_dtype


def load(folder: Path | str, **fields) -> Engine:
    return Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", **fields))


def test_a_family_without_the_attention_interface_is_refused(tiny_model):
    with pytest.raises(ModelLoadError, match=r"family `mpt`, .*another family"):
        load(tiny_model("mpt"))


def test_a_family_with_a_recurrent_state_is_refused(tiny_model):
    with pytest.raises(ModelLoadError, match=r"family `mamba`, which .*another family"):
        load(tiny_model("mamba"))


def test_a_broken_folder_is_refused_with_the_reason(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load(tmp_path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path):
    (tmp_path / "x.gguf").write_bytes(b"nonsense" * 100)
    with pytest.raises(ModelLoadError, match=r"x\.gguf"):
        load(tmp_path / "x.gguf")


def test_max_model_len_beyond_the_model_or_the_cache_is_refused(tiny_model):
    folder = tiny_model("llama")
    assert load(folder, max_model_len=100).max_model_len == 100
    with pytest.raises(ModelLoadError, match="`max_model_len` is 513, but .* has a context of 512"):
        load(folder, max_model_len=513)
    page = 4 * 2 * 16 * 2 * 4 * 16
    with pytest.raises(
        ModelLoadError, match=r"holds 64 tokens, fewer than `max_model_len` \(512\)"
    ) as caught:
        load(folder, max_model_len=512, kv_cache_memory=5 * page)
    assert f"{33 * page} bytes" in str(caught.value)
    assert load(folder, max_model_len=512, kv_cache_memory=33 * page).max_model_len == 512


def test_devices_and_dtypes():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("float16", torch.device("cpu")) is torch.float16
    assert choose_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ModelLoadError, match="sees 0 CUDA devices"):
            choose_device("cuda:1")


def test_eos_ids_are_joined(tiny_model):
    assert load(tiny_model("llama")).tokenizer.eos_token_ids == {2}
