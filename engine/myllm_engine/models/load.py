"""Load a model and put our attention into it."""

from __future__ import annotations

import inspect
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..attention import ATTENTION_NAME, register_attention
from ..config import EngineConfig
from ..errors import ModelLoadError
from .adapters import ADAPTED_FAMILIES, adapt
from .cpu.model import NativeModel, make_native
from .fuse import fuse_linears
from .lora import LoraModel
from .pack import pack_linears
from .pretrained import read_model
from .quantize_gpu import quantize_linears
from .source import ModelSource
from .verify import Expected, take_expected
from .vision import VISION_FAMILIES

logger = logging.getLogger(__name__)

_FALLBACK_MAX_LEN = 2048
# Chunks are whole attention within the first one, which the context is limited to.
_LAYER_TYPES = {"full_attention", "sliding_attention", "chunked_attention"}
# These scale rotary frequencies by the longest position of the batch, so that one long sequence would change
# others.
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Hold a model that is ready to run.

    Attributes:
        model: in evaluation mode, on its device, with our attention.
        name: short name, such as "SmolLM2-135M-Instruct".
        max_model_len: tokens that one sequence may have.
        vocab_size: width of the logits.
        hidden_size: width of the hidden states after the last layer.
        eos_token_ids: from the model's config and generation config.
        generation_config: what the model's makers recommend, as its `generation_config.json` has it; without
            what is transformers' default anyway.
        native: the model in the CPU library, which then computes instead of `model`; None: there is none.
        expected: what the model computes by itself, to verify paged attention against; None with a
            native model.
        lora: puts adapters into the model, whose linear layers are `LoraLinear` if it is `enabled`.
    """

    model: PreTrainedModel
    name: str
    max_model_len: int
    vocab_size: int
    hidden_size: int
    eos_token_ids: frozenset[int]
    generation_config: dict[str, Any]
    lora: LoraModel
    native: NativeModel | None = None
    expected: Expected | None = None


def choose_device(device: str) -> torch.device:
    """Return the device that `EngineConfig.device` means.

    Raises:
        ModelLoadError: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if available else "cpu"
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        if not available or index >= torch.cuda.device_count():
            count = torch.cuda.device_count() if available else 0
            raise ModelLoadError(
                f"`device` {device!r} was asked for, and torch {torch.__version__} sees {count} CUDA devices"
                ": use 'cpu' or 'auto', or install a torch build for your GPU"
            )
        return torch.device("cuda", index)
    return torch.device(device)


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype that `EngineConfig.dtype` means on a device.

    "auto" is bfloat16 where the hardware multiplies it natively: elsewhere float32 is faster on CPUs.
    """
    if dtype == "float16" and device.type == "cpu":
        logger.warning(
            "float16 is no faster than float32 on a CPU, and large activations overflow in it: bfloat16 "
            "(where the CPU computes it natively) or float32 serve better."
        )
    if dtype != "auto":
        return getattr(torch, dtype)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if not flags:
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    return torch.bfloat16 if flags.get("avx512_bf16") or flags.get("amx_bf16") else torch.float32


def load_model(
    config: EngineConfig, source: ModelSource, *, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    """Load the model, check that its family runs with paged attention, and switch it over.

    Raises:
        ModelLoadError: it cannot be loaded, or would give wrong answers here.
    """
    model = read_model(config, source, device=device, dtype=dtype)
    text_config = model.config.get_text_config(decoder=True)
    _refuse_unsupported(model, text_config, config.model)
    model.eval()
    vocab_size = model.get_output_embeddings().weight.shape[0]
    max_model_len = _max_model_len(config, text_config)
    native = make_native(model, config, source, max_len=max_model_len) if device.type == "cpu" else None
    # Before linear layers are replaced by others, which may compute several at once.
    lora = LoraModel(model, config.max_loras or len(config.lora_adapters))
    if device.type == "cuda":
        _prepare_for_gpu(model, config)
    expected = take_expected(model, vocab_size) if native is None else None
    if text_config.model_type in ADAPTED_FAMILIES:
        adapt(model)
    else:
        register_attention()
        sees = model.config.model_type in VISION_FAMILIES  # and not with the language model's attention
        model.set_attn_implementation({"text_config": ATTENTION_NAME} if sees else ATTENTION_NAME)
    if text_config._attn_implementation != ATTENTION_NAME:
        raise ModelLoadError(
            f"{config.model!r} is of the family `{text_config.model_type}`, whose attention in transformers "
            "cannot be replaced: it cannot run over a paged KV cache; choose a model of another family"
        )
    if native is not None:
        model.to("meta")  # keeps the config and the shapes, and no weights
    elif config.tensor_parallel_size == 1:  # a layer's part holds hooks, which packing would lose
        pack_linears(model)
    return LoadedModel(
        model=model,
        name=_short_name(config.model, source),
        max_model_len=max_model_len,
        vocab_size=vocab_size,
        hidden_size=text_config.hidden_size,
        eos_token_ids=_eos_ids(model.generation_config) | _eos_ids(text_config),
        generation_config=model.generation_config.to_diff_dict(),
        lora=lora,
        native=native,
        expected=expected,
    )


def _prepare_for_gpu(model: PreTrainedModel, config: EngineConfig) -> None:
    """Multiply by sibling layers together, and keep weights in few bits if asked to."""
    # Adapters that are loaded later wrap single layers; tensor parallelism has split them already.
    if not config.lora_adapters and not config.max_loras and config.tensor_parallel_size == 1:
        fuse_linears(model)
    if config.quantization in ("int8", "int4"):
        if config.tensor_parallel_size > 1:
            raise ModelLoadError(
                f"`quantization` {config.quantization!r} needs a `tensor_parallel_size` of 1"
            )
        quantize_linears(model, bits=int(config.quantization.removeprefix("int")))


def _refuse_unsupported(model: PreTrainedModel, text_config: PretrainedConfig, name: str) -> None:
    """Refuse families whose layers keep more than keys and values, or hide tokens by other rules."""
    family = text_config.model_type
    reason = None
    layer_types = set(getattr(text_config, "layer_types", None) or ()) - _LAYER_TYPES
    rope = getattr(text_config, "rope_parameters", None) or {}
    if model.config.is_encoder_decoder:
        reason = "has an encoder"
    elif getattr(model, "_is_stateful", False):
        reason = "keeps a recurrent state next to keys and values"
    elif layer_types:
        reason = f"has layers of the type {', '.join(sorted(map(repr, layer_types)))}"
    elif family not in ADAPTED_FAMILIES and (
        "position_ids" not in inspect.signature(model.forward).parameters
    ):
        reason = "takes no `position_ids`, so that several sequences cannot share one forward pass"
    elif not isinstance(rope, dict):
        reason = f"describes its rotary positions as {rope!r}"
    if reason is not None:
        raise ModelLoadError(
            f"{name!r} is of the family `{family}`, which {reason}; this engine cannot run it: "
            "choose a model of another family"
        )


def _max_model_len(config: EngineConfig, text_config: PretrainedConfig) -> int:
    names = ("max_position_embeddings", "max_seq_len", "seq_length")  # the last two: MPT, Bloom
    limit = next((value for name in names if (value := getattr(text_config, name, None))), _FALLBACK_MAX_LEN)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _BATCH_DEPENDENT_ROPE:
        original = rope.get("original_max_position_embeddings") or getattr(
            text_config, "original_max_position_embeddings", None
        )
        if original is not None and original < limit:
            logger.warning(
                "Rotary positions of the type %r depend on the longest sequence of a batch beyond %d tokens: "
                "the context is limited to that.",
                rope["rope_type"],
                original,
            )
            limit = original
    if "chunked_attention" in (getattr(text_config, "layer_types", None) or ()):
        chunk = text_config.attention_chunk_size
        if chunk < limit:
            logger.warning("Layers attend in chunks of %d tokens: the context is limited to one.", chunk)
            limit = chunk
    if config.max_model_len is None:
        return limit
    if config.max_model_len > limit:
        raise ModelLoadError(
            f"`max_model_len` is {config.max_model_len}, but {config.model!r} has a context of {limit}"
        )
    return config.max_model_len


def _eos_ids(config: Any) -> frozenset[int]:
    value = getattr(config, "eos_token_id", None)
    if value is None:
        return frozenset()
    return frozenset({value} if isinstance(value, int) else value)


def _short_name(model: str, source: ModelSource) -> str:
    """Return the last part of the path; of a GGUF file without its quantisation, as in "name.Q4_1.gguf"."""
    if source.gguf_file is not None:
        return re.sub(r"[.-](I?Q\d\w*|BF16|F16|F32)$", "", Path(source.gguf_file).stem, flags=re.IGNORECASE)
    return Path(source.path).name or model
