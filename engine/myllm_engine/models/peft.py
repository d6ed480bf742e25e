"""Read LoRA adapters in the format of the `peft` library.

What an adapter adds to a linear layer is `scaling * B @ A @ x` (arXiv:2106.09685), with `scaling` being
`alpha / rank`, or `alpha / sqrt(rank)` with rank stabilisation (arXiv:2312.03732).
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import ModelLoadError

logger = logging.getLogger(__name__)

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
# Ways to begin the training that change the model's own weights, which are not in the adapter.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
# What makes the result another than this engine's, and why.
_REFUSED = {
    "use_dora": "DoRA rescales the model's own weights",
    "modules_to_save": "it replaces whole modules of the model",
    "trainable_token_indices": "it replaces rows of the embedding",
    "target_parameters": "it changes parameters that are no linear layer's weight, such as those of experts",
    "layer_replication": "it repeats layers of the model",
    "lora_bias": "it adds biases",
    "use_qalora": "QA-LoRA pools what the adapter reads",
    "use_bdlora": "BD-LoRA's matrices are block-diagonal",
    "alora_invocation_tokens": "aLoRA is active only after certain tokens",
    "arrow_config": "Arrow chooses among adapters token by token",
    "kasa_config": "KaSA changes the model's own weights",
    "monteclora_config": "MonteCLoRA's weights are drawn at random",
    "megatron_config": "it was made for Megatron's parallel layers",
}
_UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights"),
    # Of training, or about how the model stores its weights.
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout"),
    *("fan_in_fan_out", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("megatron_core", "peft_version", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Say what a linear layer takes and gives.

    Attributes:
        in_features: numbers it takes for each token.
        out_features: numbers it gives.
        dtype: of what it computes with.
        refusal: why it can have no adapter; None if it can.
        is_head: whether it makes the logits.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype
    refusal: str | None = None
    is_head: bool = False


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """Hold what an adapter adds to a model.

    Attributes:
        path: where it was read from.
        layers: by the name of the layer: `A` `[rank, in_features]`, and `scaling * B` `[out_features, rank]`.
    """

    path: str
    layers: Mapping[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        """Return the largest rank of a layer."""
        return max(down.shape[0] for down, _ in self.layers.values())


def read_adapter(
    path: str, shapes: Mapping[str, LayerShape], *, prefix: str, device: torch.device
) -> AdapterWeights:
    """Read an adapter and check that it fits a model. May be called from any thread.

    Args:
        path: a folder, or a hub id.
        shapes: the linear layers of the model, by name.
        prefix: what those names begin with, but not in adapters made for the model without its head.
        device: where the result lies.

    Raises:
        ModelLoadError: it cannot be read, asks for what this engine does not compute, or is for another
            model.
    """
    folder = _find(path)
    config = _read_config(path, folder / _CONFIG)
    halves = _read_halves(path, folder / _WEIGHTS)
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for module, (first, second) in sorted(halves.items()):
        name = module if module in shapes else f"{prefix}.{module}"
        shape = shapes.get(name)
        if shape is None:
            raise ModelLoadError(
                f"The adapter {path!r} changes `{module}`, and the model has no linear layer of this name: "
                "it was made for another model, or for a layer of another kind (there are: "
                f"{_examples(shapes)})"
            )
        if shape.refusal is not None:
            raise ModelLoadError(f"The adapter {path!r} changes `{name}`, which {shape.refusal}")
        if not (config.targets(name, shape) or config.targets(module, shape)):
            raise ModelLoadError(
                f"The adapter {path!r} holds weights for `{module}`, which the `target_modules` of its "
                f"`{_CONFIG}` leave out: correct the one or the other"
            )
        rank, scaling = config.rank_and_scaling(module)
        _check_shape(path, f"{module}.lora_A.weight", first, (rank, shape.in_features))
        _check_shape(path, f"{module}.lora_B.weight", second, (shape.out_features, rank))
        down, up = first.to(device, shape.dtype), (second.float() * scaling).to(device, shape.dtype)
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ModelLoadError(
                f"The adapter {path!r} has weights for `{module}` that are no finite numbers in {shape.dtype}"
            )
        layers[name] = down, up
    without = [name for name, shape in shapes.items() if name not in layers and config.targets(name, shape)]
    if without:
        logger.warning(
            "The adapter %r is for %d layers that its file has no weights for, such as `%s`: they stay as "
            "they are",
            path,
            len(without),
            without[0],
        )
    return AdapterWeights(path, layers)


@dataclass(frozen=True, slots=True)
class _AdapterConfig:
    """The fields of `adapter_config.json` that say what the weights mean, with peft's own rules."""

    rank: int
    alpha: float
    rank_stabilised: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target: Callable[[str], bool] | None  # None: every linear layer but the head
    exclude: Callable[[str], bool]
    layers: frozenset[int]  # empty: all
    layer_patterns: tuple[str, ...]

    def rank_and_scaling(self, module: str) -> tuple[int, float]:
        """Return a layer's rank, and what its `B @ A` is multiplied with."""
        rank = _by_pattern(self.rank_pattern, module, self.rank)
        alpha = _by_pattern(self.alpha_pattern, module, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def targets(self, module: str, shape: LayerShape) -> bool:
        """Tell whether the adapter was made for a layer."""
        if self.exclude(module):
            return False
        if self.target is None:
            return not shape.is_head
        return self.target(module) and (not self.layers or self._layer(module) in self.layers)

    def _layer(self, module: str) -> int | None:
        for pattern in self.layer_patterns:
            match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if match:
                return int(match[1])
        return None


def _find(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.exists() or not _HUB_ID.fullmatch(path):
            raise ModelLoadError(
                f"There is no adapter at {path!r}: give a folder with `{_CONFIG}` and `{_WEIGHTS}`, or a hub "
                "id such as 'org/name'"
            )
        folder = _download(path)
    for name in (_CONFIG, _WEIGHTS):
        if not (folder / name).is_file():
            pickled = name == _WEIGHTS and (folder / "adapter_model.bin").is_file()
            advice = (
                "; `adapter_model.bin` is not read, as it can run code: load it with peft and save it again"
                if pickled
                else ": give what `PeftModel.save_pretrained` wrote"
            )
            raise ModelLoadError(f"The adapter {path!r} has no `{name}`{advice}")
    return folder


def _download(path: str) -> Path:
    from huggingface_hub import snapshot_download  # comes with transformers

    try:
        return Path(snapshot_download(path, allow_patterns=["adapter_*"]))
    except Exception as error:
        raise ModelLoadError(f"The adapter {path!r} cannot be fetched from the hub: {error}") from error


def _read_config(path: str, file: Path) -> _AdapterConfig:
    try:
        fields = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelLoadError(f"`{_CONFIG}` of the adapter {path!r} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ModelLoadError(f"`{_CONFIG}` of the adapter {path!r} is not a JSON object")
    _refuse(path, fields)
    try:
        return _parse(fields)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, re.error) as error:
        raise ModelLoadError(
            f"`{_CONFIG}` of the adapter {path!r} cannot be understood: {type(error).__name__}: {error}"
        ) from error


def _refuse(path: str, fields: Mapping[str, Any]) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise ModelLoadError(
            f"The adapter {path!r} is of the type {kind!r}; this engine runs 'LORA' adapters only"
        )
    for name, reason in _REFUSED.items():
        if fields.get(name) not in (None, False, [], {}):
            raise ModelLoadError(
                f"The adapter {path!r} uses `{name}` ({fields[name]!r}), which this engine does not compute: "
                f"{reason}; merge it into the model with peft's `merge_and_unload`"
            )
    if fields.get("bias", "none") != "none":
        raise ModelLoadError(
            f"The adapter {path!r} changes biases (`bias`: {fields['bias']!r}), which this engine does not "
            "compute; merge it into the model with peft's `merge_and_unload`"
        )
    begins = fields.get("init_lora_weights")
    if isinstance(begins, str) and begins.lower().startswith(_CHANGES_BASE):
        raise ModelLoadError(
            f"The adapter {path!r} was trained with `init_lora_weights` {begins!r}, which changed the "
            "model's own weights: save it with peft's `path_initial_model_for_weight_conversion`"
        )
    unknown = sorted(name for name in fields.keys() - _UNDERSTOOD - _REFUSED.keys() if fields[name])
    if unknown:
        logger.warning(
            "`%s` of the adapter %r has fields that this engine does not know: %s",
            _CONFIG,
            path,
            ", ".join(f"`{name}` ({fields[name]!r})" for name in unknown),
        )


def _parse(fields: Mapping[str, Any]) -> _AdapterConfig:
    target = fields["target_modules"]
    if not target:
        raise ValueError(f"`target_modules` is {target!r}")
    for name, rank in {"r": fields["r"], **(fields.get("rank_pattern") or {})}.items():
        if int(rank) < 1:
            raise ValueError(f"`{name}` is {rank!r}")
    layers = fields.get("layers_to_transform")
    patterns = fields.get("layers_pattern") or ()
    alone = isinstance(target, str)  # peft looks at layers' numbers only next to a list of names
    return _AdapterConfig(
        rank=int(fields["r"]),
        alpha=float(fields["lora_alpha"]),
        rank_stabilised=bool(fields.get("use_rslora")),
        rank_pattern={key: int(value) for key, value in (fields.get("rank_pattern") or {}).items()},
        alpha_pattern={key: float(value) for key, value in (fields.get("alpha_pattern") or {}).items()},
        target=None if alone and target.lower() == "all-linear" else _matcher(target),
        exclude=_matcher(fields.get("exclude_modules") or ()),
        layers=frozenset(() if alone or layers is None else [layers] if isinstance(layers, int) else layers),
        # Without names of its own, the first number in the layer's name counts.
        layer_patterns=((patterns,) if isinstance(patterns, str) else tuple(patterns)) or (r"[^.]*",),
    )


def _matcher(wanted: str | Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a module is meant: by a regular expression, or by the end of its name."""
    if isinstance(wanted, str):
        pattern = re.compile(wanted)
        return lambda module: pattern.fullmatch(module) is not None
    endings = tuple(wanted)
    return lambda module: any(module == ending or module.endswith(f".{ending}") for ending in endings)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((patterns[key] for key in patterns if re.match(rf"(.*\.)?({key})$", module)), default)


def _read_halves(path: str, file: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return `A` and `B` as they are in the file, by the name of the layer."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"`{_WEIGHTS}` of the adapter {path!r} cannot be read: {error}") from error
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise ModelLoadError(
                f"The adapter {path!r} holds the tensor `{name}`, which is none of a linear layer's `lora_A` "
                "and `lora_B`: this engine runs no adapters of embeddings and no whole weights (peft leaves "
                "those out with `save_embedding_layers=False`)"
            )
        found.setdefault(match["module"], {})[match["half"]] = tensor
    if not found:
        raise ModelLoadError(f"`{_WEIGHTS}` of the adapter {path!r} is empty")
    for module, pair in found.items():
        if len(pair) == 1:
            half, other = ("A", "B") if "A" in pair else ("B", "A")
            raise ModelLoadError(
                f"The adapter {path!r} holds `{module}.lora_{half}.weight` without `lora_{other}`: the file "
                "is incomplete"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _check_shape(path: str, name: str, tensor: torch.Tensor, expected: tuple[int, int]) -> None:
    if tuple(tensor.shape) != expected:
        raise ModelLoadError(
            f"The adapter {path!r} has the tensor `{name}` in the shape {list(tensor.shape)}; this model and "
            f"`{_CONFIG}` want {list(expected)}: it was made for another model, or has another rank"
        )


def _examples(shapes: Mapping[str, LayerShape]) -> str:
    names = [f"`{name}`" for name in shapes]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
