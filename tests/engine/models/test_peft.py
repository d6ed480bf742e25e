"""Check which adapters are refused, and in which words; what they compute is checked in `test_lora`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from myllm_engine.errors import ModelLoadError
from myllm_engine.models.peft import AdapterWeights, LayerShape, read_adapter

SHAPES = {
    "model.layers.0.attn.q": LayerShape(6, 4, torch.float32),
    "model.layers.1.attn.q": LayerShape(6, 4, torch.float32),
    "model.layers.1.mlp.up": LayerShape(6, 8, torch.float16),
    "model.layers.1.mlp.experts.0.w": LayerShape(6, 8, torch.float32, refusal="gets only some of the tokens"),
    "head": LayerShape(6, 9, torch.float32, is_head=True),
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}


def pair(name: str, rank: int = 2, value: float = 1.0) -> dict[str, torch.Tensor]:
    shape = SHAPES[name]
    return {
        f"base_model.model.{name}.lora_A.weight": torch.full((rank, shape.in_features), value),
        f"base_model.model.{name}.lora_B.weight": torch.full((shape.out_features, rank), value),
    }


BOTH = {**pair("model.layers.0.attn.q"), **pair("model.layers.1.attn.q")}
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(tensors: dict[str, torch.Tensor] = BOTH, **fields: Any) -> str:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return str(tmp_path)

    return write


def read(path: str) -> AdapterWeights:
    return read_adapter(path, SHAPES, prefix="model", device=torch.device("cpu"))


def scalings(path: str) -> dict[str, float]:
    """Return what each layer's `B`, which is all ones, was multiplied with."""
    return {name: float(up[0, 0]) for name, (_, up) in read(path).layers.items()}


def test_scaling_patterns_and_dtypes(write):
    zero, one, up = "model.layers.0.attn.q", "model.layers.1.attn.q", "model.layers.1.mlp.up"
    assert scalings(write()) == {zero: 2.0, one: 2.0}
    assert scalings(write(use_rslora=True)) == pytest.approx({zero: 4 / 2**0.5, one: 4 / 2**0.5})
    tensors = {**pair(zero), **pair(one, rank=3), **pair(up, rank=1)}
    adapter = write(
        tensors,
        target_modules=["q", "mlp.up"],
        rank_pattern={r"layers\.1\.attn\.q": 3, "up": 1},
        alpha_pattern={"^model.layers.1.mlp.up": 16},
    )
    assert scalings(adapter) == pytest.approx({zero: 2.0, one: 4 / 3, up: 16.0})
    weights = read(adapter)
    assert weights.rank == 3
    assert {name: item[0].dtype for name, item in weights.layers.items()}[up] == torch.float16


def test_names_without_the_head_s_prefix_are_found(write):
    """As of adapters that were made for the model without its head."""
    tensors = {name.replace("model.layers", "layers"): tensor for name, tensor in BOTH.items()}
    assert tensors.keys() != BOTH.keys()
    assert set(read(write(tensors)).layers) == {"model.layers.0.attn.q", "model.layers.1.attn.q"}


def test_layers_without_weights_are_named_in_the_log(write, caplog):
    with caplog.at_level(logging.WARNING):
        assert list(read(write(pair("model.layers.0.attn.q"))).layers) == ["model.layers.0.attn.q"]
    assert "is for 1 layers that its file has no weights for, such as `model.layers.1.attn.q`" in caplog.text
    caplog.clear()
    read(write(pair("model.layers.0.attn.q"), layers_to_transform=[0]))
    read(write(pair("model.layers.0.attn.q"), target_modules=r".*0\.attn\.q"))
    read(write(pair("model.layers.0.attn.q"), exclude_modules=["1.attn.q"]))
    read(write(pair("model.layers.0.attn.q"), layers_to_transform=0, layers_pattern="layers"))
    assert not caplog.text
    read(write(pair("model.layers.0.attn.q"), layers_to_transform=[0], new_thing=7))
    assert "fields that this engine does not know: `new_thing` (7)" in caplog.text


def test_what_peft_saves_today_is_known(write, caplog):
    fields = LoraConfig(target_modules=["q"], r=2, lora_alpha=4).to_dict()
    fields = {name: sorted(value) if isinstance(value, set) else value for name, value in fields.items()}
    assert len(fields) > 30
    assert set(scalings(write(**fields)).values()) == {2.0}
    assert not caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "is of the type 'LOHA'"),
        ({"use_dora": True}, "uses `use_dora` .*DoRA rescales .*merge_and_unload"),
        (
            {"modules_to_save": ["lm_head"]},
            r"uses `modules_to_save` \(\['lm_head'\]\).*replaces whole modules",
        ),
        ({"target_parameters": ["experts.w"]}, "uses `target_parameters`.*such as those of experts"),
        ({"lora_bias": True}, "uses `lora_bias`.*adds biases"),
        ({"bias": "all"}, "changes biases .*'all'"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the model's own"),
        ({"target_modules": None}, "cannot be understood: ValueError: `target_modules` is None"),
        ({"target_modules": "("}, "cannot be understood"),
        ({"r": "many"}, "cannot be understood: ValueError: .*'many'"),
        ({"r": 0}, "cannot be understood: ValueError: `r` is 0"),
        (
            {"target_modules": ["up"]},
            "weights for `model.layers.0.attn.q`, which the `target_modules`.*leave out",
        ),
        ({"layers_to_transform": [0]}, "weights for `model.layers.1.attn.q`, which the `target_modules`"),
        ({"r": 3}, r"`model.layers.0.attn.q.lora_A.weight` in the shape \[2, 6\].*want \[3, 6\]"),
    ],
)
def test_configs_that_are_refused(write, fields, message):
    with pytest.raises(ModelLoadError, match=message):
        read(write(**fields))


WRONG = {
    "shape": (
        {**BOTH, "base_model.model.model.layers.1.attn.q.lora_B.weight": torch.ones(5, 2)},
        r"`model.layers.1.attn.q.lora_B.weight` in the shape \[5, 2\].*want \[4, 2\]: it was made for another",
    ),
    "no such layer": (
        {
            "base_model.model.other.q.lora_A.weight": torch.ones(2, 6),
            "base_model.model.other.q.lora_B.weight": torch.ones(4, 2),
        },
        "changes `other.q`, and the model has no linear layer of this name.*there are: `model.layers.0.attn.q`, ",
    ),
    "half": (
        {"base_model.model.model.layers.1.attn.q.lora_A.weight": torch.ones(2, 6)},
        "`model.layers.1.attn.q.lora_A.weight` without `lora_B`",
    ),
    "embedding": (
        {**BOTH, "base_model.model.model.embed.lora_embedding_A": torch.ones(2, 6)},
        "holds the tensor `base_model.model.model.embed.lora_embedding_A`.*no adapters of embeddings",
    ),
    "magnitudes": (
        {**BOTH, "base_model.model.model.layers.1.attn.q.lora_magnitude_vector": torch.ones(4)},
        "holds the tensor `base_model.model.model.layers.1.attn.q.lora_magnitude_vector`",
    ),
    "not finite": (pair("model.layers.1.attn.q", value=float("nan")), "no finite numbers in torch.float32"),
    "nothing": ({}, "is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_refused(write, case):
    tensors, message = WRONG[case]
    with pytest.raises(ModelLoadError, match=message):
        read(write(tensors))


def test_numbers_too_large_for_the_layer_are_refused(write):
    tensors = pair("model.layers.1.mlp.up", value=60000.0)
    with pytest.raises(ModelLoadError, match="no finite numbers in torch.float16"):
        read(write(tensors, target_modules=["up"]))


def test_layers_of_experts_are_refused_with_the_reason(write):
    tensors = pair("model.layers.1.mlp.experts.0.w")
    with pytest.raises(
        ModelLoadError, match=r"`model.layers.1.mlp.experts.0.w`, which gets only some of the"
    ):
        read(write(tensors, target_modules=["w"]))


def test_all_linear_leaves_the_head_out(write):
    read(write(target_modules="all-linear"))
    with pytest.raises(ModelLoadError, match="holds weights for `head`, which the `target_modules`"):
        read(write({**BOTH, **pair("head")}, target_modules="all-linear"))
    assert "head" in read(write({**BOTH, **pair("head")}, target_modules=["q", "head"])).layers


def test_folders_that_are_none(write, tmp_path, monkeypatch):
    for path in ("./nowhere", "no such name", str(tmp_path / "file")):
        (tmp_path / "file").touch()
        with pytest.raises(ModelLoadError, match="There is no adapter at"):
            read(path)
    with pytest.raises(ModelLoadError, match=r"has no `adapter_config\.json`: give what `PeftModel"):
        read(str(tmp_path))
    write()
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(
        ModelLoadError, match=r"no `adapter_model\.safetensors`; `adapter_model\.bin` is not read"
    ):
        read(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read(str(tmp_path))
    for text, message in (("{", "is not JSON"), ("[]", "is not a JSON object")):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ModelLoadError, match=message):
            read(str(tmp_path))


def test_hub_ids_are_fetched(write, monkeypatch):
    """From the hub's cache, as there is no hub here; without the file there is an error with its reason."""
    import huggingface_hub

    folder, asked = write(), []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        if name == "org/gone":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert len(read("org/name").layers) == 2
    assert asked == [("org/name", ["adapter_*"])]
    with pytest.raises(ModelLoadError, match="'org/gone' cannot be fetched from the hub: no connection"):
        read("org/gone")
