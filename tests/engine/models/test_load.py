"""Check what is refused at load, and in which words."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from myllm_engine.attention import paged_attention
from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.errors import ModelLoadError
from myllm_engine.models.load import choose_device, choose_dtype
from myllm_engine.models.source import resolve_model

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def load(folder: Path | str, **fields) -> Engine:
    return Engine(EngineConfig(**{"model": str(folder), "device": "cpu", "dtype": "float32", **fields}))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a model without a tokenizer: enough for what is refused before that."""

    def make(family: str, auto: Any = AutoModelForCausalLM, **fields: Any) -> Path:
        default = AutoConfig.for_model(family)
        sizes = {key: value for key, value in SIZES.items() if hasattr(default, key)}
        auto.from_config(AutoConfig.for_model(family, **{**sizes, **fields})).save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.fixture
def llama(tiny_model, tmp_path: Path) -> Path:
    """Return a copy of the tiny Llama's folder, to be damaged."""
    return Path(shutil.copytree(tiny_model("llama"), tmp_path / "llama"))


def edit_config(folder: Path, **fields: Any) -> None:
    """Set fields of a folder's config; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("mamba", {"state_size": 4}, "keeps a recurrent state next to keys and values"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, r"has layers of the type 'conv'"),
        ("roformer", {"is_decoder": True}, "takes no `position_ids`"),
        ("megatron-bert", {"is_decoder": True}, "whose attention in transformers cannot be replaced"),
        ("bert", {}, "`BertSelfAttention` lets tokens attend to later ones"),
        ("doge", {}, "`DogeAttention` hides tokens by a mask of its own"),
        ("diffllama", {}, "layer 0 attends more than once"),
        (
            "minimax_m3_vl_text",
            {"layer_types": ["full_attention", "minimax_m3_sparse"], "head_dim": 8},
            "has layers of the type 'minimax_m3_sparse'",
        ),
        (
            "phimoe",
            {"sliding_window": 8, "num_local_experts": 2},
            "does not tell its attention .* window of 8",
        ),
    ],
)
def test_families_that_would_be_computed_wrongly_are_refused(save, tiny_model, family, fields, reason):
    folder = save(family, **fields)
    shutil.copy(tiny_model("llama") / "tokenizer.json", folder)
    with pytest.raises(ModelLoadError, match=reason):
        load(folder)


def test_a_tensor_that_attention_does_not_know_is_not_left_out():
    heads = torch.zeros(1, 1, 1, 8)
    with pytest.raises(NotImplementedError, match="`Linear` changes its attention by `block_indices`"):
        paged_attention(torch.nn.Linear(1, 1), heads, heads, heads, block_indices=torch.zeros(1))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("t5", "which has an encoder"),
        ("llava", "which reads more than text"),
        ("vit", "which is no causal language model"),
    ],
)
def test_other_kinds_of_models_are_refused(tmp_path, family, reason):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=rf"family `{family}`, {reason}.*another family"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model_type": None}, "names no `model_type`"),
        ({"model_type": "frobnicate"}, r"'frobnicate', which transformers \d+\.\d+.* does not know"),
        ({"model_type": "frobnicate", "auto_map": {}}, "brings code of its own: .*`trust_remote_code`"),
        ({"hidden_size": 63}, "cannot be loaded: "),
        ({"num_hidden_layers": 5}, r"lack weights .* model\.layers\.4\.\S+, .* and 6 more"),
        ({"intermediate_size": 100}, r"lack weights .*mlp\.\S+ of the shape \(64, 100\)"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(llama, fields, reason):
    edit_config(llama, **fields)
    with pytest.raises(ModelLoadError, match=reason):
        load(llama)


def test_code_beside_a_known_family_is_not_needed(llama):
    edit_config(llama, auto_map={"AutoConfig": "x.Y"})
    assert load(llama).max_model_len == 512


def test_damaged_files_are_named(llama):
    (llama / "config.json").rename(llama / "kept")
    (llama / "config.json").write_text("{oops")
    with pytest.raises(ModelLoadError, match="not a valid JSON"):
        load(llama)
    (llama / "kept").rename(llama / "config.json")
    weights = llama / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (whole[:5000], b"\xff" * 5000, b""):
        weights.write_bytes(broken)
        with pytest.raises(ModelLoadError, match=r"`model\.safetensors` is damaged or cut off"):
            load(llama)
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"no file named model\.safetensors"):
        load(llama)


def test_weights_that_are_not_there_are_not_made_up(llama):
    weights = load_file(llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lack weights .*: model\.layers\.1\.mlp\.up_proj\.weight;"):
        load(llama)


def test_a_model_without_its_head_is_refused(save):
    with pytest.raises(ModelLoadError, match=r"lack weights .*lm_head\.weight"):
        load(save("llama", AutoModel))


def test_shards_load_and_a_missing_one_is_named(llama):
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(llama, max_shard_size="10MB")
    (llama / "model.safetensors").unlink()
    shards = sorted(llama.glob("*.safetensors"))
    assert len(shards) > 1
    assert load(llama).max_model_len == 512
    shards[1].unlink()
    with pytest.raises(ModelLoadError, match=rf"`{shards[1].name}`, which is not there"):
        load(llama)


def test_tied_embeddings_and_a_missing_generation_config(llama):
    edit_config(llama, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(llama)).save_pretrained(llama)
    (llama / "generation_config.json").unlink()
    assert "lm_head.weight" not in load_file(llama / "model.safetensors")
    edit_config(llama, eos_token_id=[2, 7])
    assert load(llama).tokenizer.eos_token_ids == {2, 7}


def test_a_missing_tokenizer_is_told_of(llama):
    for file in llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelLoadError, match=r"The tokenizer of .* cannot be loaded: .*pass `tokenizer=`"):
        load(llama)


@pytest.mark.parametrize("size", [4, 20, 1000, 1_000_000, 50_000_000])
def test_a_gguf_file_cut_off_is_refused(tmp_path, size):
    with resolve_model("smollm2").gguf_path.open("rb") as file:
        (tmp_path / "x.gguf").write_bytes(file.read(size))
    with pytest.raises(ModelLoadError, match=r"x\.gguf' is cut off.*download it again"):
        load(tmp_path / "x.gguf")


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
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


def test_chunked_attention_limits_the_context_to_a_chunk(save, tiny_model, caplog):
    folder = save(
        "llama4_text", attention_chunk_size=40, head_dim=8, num_local_experts=2, intermediate_size_mlp=64
    )
    shutil.copy(tiny_model("llama") / "tokenizer.json", folder)
    with caplog.at_level(logging.WARNING):
        assert load(folder).max_model_len == 40
    assert "chunks of 40 tokens" in caplog.text
    with pytest.raises(ModelLoadError, match="has a context of 40"):
        load(folder, max_model_len=41)


def test_devices_and_dtypes(caplog):
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_dtype("auto", torch.device("cpu")) in (torch.bfloat16, torch.float32)
    assert choose_dtype("float16", torch.device("cuda")) is torch.float16
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert choose_dtype("float16", torch.device("cpu")) is torch.float16
    assert "float16 is no faster than float32 on a CPU" in caplog.text
    if not torch.cuda.is_available():
        assert choose_device("auto") == torch.device("cpu")
        with pytest.raises(ModelLoadError, match="sees 0 CUDA devices"):
            choose_device("cuda:1")


def test_eos_ids_are_joined(tiny_model):
    assert load(tiny_model("llama")).tokenizer.eos_token_ids == {2}
