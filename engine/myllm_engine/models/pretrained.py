"""Read a model's files through transformers, and say in plain words what is wrong with them."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from ..config import EngineConfig
from ..errors import ModelLoadError
from .source import ModelSource
from .vision import VISION_FAMILIES

logger = logging.getLogger(__name__)

_SHOWN = 3


def read_model(
    config: EngineConfig, source: ModelSource, *, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Read config and weights.

    Raises:
        ModelLoadError: files or weights are missing or damaged, or transformers does not know the family.
    """
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    if config.tensor_parallel_size > 1:
        options |= _shared_layers(config)
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        if source.gguf_file is not None:
            return _from_gguf(config.model, source, options)
        options["revision"] = config.revision
        loader = _check_family(config, source)
        return _with_all_weights(config.model, source.path, options, loader)
    except ModelLoadError:
        raise
    except Exception as error:
        reason = _damaged(Path(source.path)) or str(error)
        raise ModelLoadError(f"The model {config.model!r} cannot be loaded: {reason}") from error


def _check_family(config: EngineConfig, source: ModelSource) -> Any:
    """Return the class that loads the model.

    Refuse what has no causal language model in transformers, before any weight is read.
    """
    raw, _ = transformers.PretrainedConfig.get_config_dict(source.path, revision=config.revision)
    family = raw.get("model_type")
    if "auto_map" in raw and config.trust_remote_code:
        return AutoModelForCausalLM
    if family is None:
        raise ModelLoadError(
            f"The `config.json` of {config.model!r} names no `model_type`: is it the config of a model in "
            "Hugging Face's format?"
        )
    if family not in transformers.CONFIG_MAPPING and "auto_map" in raw:
        raise ModelLoadError(
            f"{config.model!r} brings code of its own: read it, and set `trust_remote_code` if you trust it"
        )
    if family not in transformers.CONFIG_MAPPING:
        raise ModelLoadError(
            f"{config.model!r} is of the family {family!r}, which transformers {transformers.__version__} "
            "does not know: a newer version might (pip install -U transformers)"
        )
    parsed = AutoConfig.from_pretrained(source.path, revision=config.revision)
    if family in VISION_FAMILIES:
        if config.tensor_parallel_size > 1 or config.lora_adapters or config.max_loras:
            raise ModelLoadError(
                f"{config.model!r} sees images, and runs without `tensor_parallel_size` and without LoRA "
                "adapters only"
            )
        return AutoModelForImageTextToText
    if type(parsed) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    if parsed.is_encoder_decoder:
        reason = "has an encoder"
    elif parsed.get_text_config(decoder=True) is not parsed:
        reason = "reads more than text, and for which transformers has no model of the text part alone"
    else:
        reason = "is no causal language model"
    raise ModelLoadError(
        f"{config.model!r} is of the family `{family}`, which {reason}; this engine cannot run it: "
        "choose a model of another family"
    )


def _with_all_weights(
    name: str, path: str, options: dict[str, Any], loader: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """Load, and refuse what transformers fills with random numbers: weights that the files do not have."""
    model, info = loader.from_pretrained(
        path, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing = sorted(info["missing_keys"])
    missing += [f"{key} of the shape {tuple(wanted)}" for key, _, wanted in sorted(info["mismatched_keys"])]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ModelLoadError(
            f"The files of {name!r} lack weights that the model needs: {', '.join(missing[:_SHOWN])}{more}; "
            "download it again, or check that its config fits its weights"
        )
    return model


def _shared_layers(config: EngineConfig) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that give this rank its part of each layer."""
    from transformers.distributed import DistributedConfig

    if "tp_size" in inspect.signature(DistributedConfig).parameters:
        return {"distributed_config": DistributedConfig(tp_size=config.tensor_parallel_size)}
    return {"tp_plan": "auto"}  # transformers 5.17


def _from_gguf(name: str, source: ModelSource, options: dict[str, Any]) -> PreTrainedModel:
    try:
        import accelerate  # noqa: F401 - transformers needs it for GGUF files, and says so in other words
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelLoadError(
            f"GGUF files need the package `{error.name}`: pip install 'myllm-suite[engine]'"
        ) from error
    from .gguf import check_complete, fast_gguf_reading

    try:
        from transformers import GgufConfig
    except ImportError:
        pass  # before it existed, transformers always dequantised
    else:
        # Dense weights: the quantised path looks for kernels on the hub, and cannot be saved.
        options["quantization_config"] = GgufConfig(dequantize=True)
    check_complete(source.gguf_path)
    with fast_gguf_reading():
        return _with_all_weights(name, source.path, {"gguf_file": source.gguf_file, **options})


def _damaged(folder: Path) -> str | None:
    """Name the first file of weights that cannot be opened, or None."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
            if not (folder / name).is_file():
                return f"`{index.name}` names the file `{name}`, which is not there: download it again"
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"`{file.name}` is damaged or cut off ({error}): download it again"
    return None
