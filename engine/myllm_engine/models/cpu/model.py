"""Run a whole forward pass of Llama-like models in the native library, in one call."""

from __future__ import annotations

import ctypes
import logging
import weakref
from collections.abc import Sequence
from ctypes import byref
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ...attention.choose import attention_backend_name
from ...batch import Batch
from ...config import EngineConfig
from ...errors import ModelLoadError
from ...kv_cache import KVCache, LayerShape
from ..source import ModelSource
from .library import Config, Format, Layer, Step, native_library
from .weights import GGUFBlocks, Packer

logger = logging.getLogger(__name__)

# Families that differ in nothing but biases, norms of queries and keys, and windows.
_FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}
_MAX_HEAD_DIM = 256  # MAX_HEAD_DIM in native/attention.h


class NativeModel:
    """Hold a model's weights as the native library wants them, and run it over batches.

    Low-bit weights, and bfloat16 ones where the CPU has matrix tiles (AMX), are multiplied with activations
    rounded to 16 bits, which costs nothing that shows: the results are those of the dequantised weights, to
    about 1e-5. (A cache in bfloat16 costs more.)

    Keys and values lie in the memory of a `KVCache`, but inside a page in an order of their own:
    keys `[kv_heads, dim, page_size]`, values `[kv_heads, page_size, dim]`; in bfloat16 two dimensions of a
    key, and two positions of a value, lie side by side (`native/attention.h`).

    Args:
        model: the transformers model, whose weights are copied.
        library: the native library.
        format: of weights that come as floats.
        blocks: see `Packer`.
        max_len: positions that a sequence may have.

    Attributes:
        shapes: what each layer keeps per token.
        num_bytes: of the weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        library: ctypes.CDLL,
        *,
        format: Format,
        blocks: GGUFBlocks | None,
        max_len: int,
    ) -> None:
        self._library = library
        self._packer = packer = Packer(library, format, blocks)
        config, body = model.config, model.model
        attention = body.layers[0].self_attn
        kv_heads = config.num_key_value_heads
        self.shapes = [LayerShape(kv_heads, attention.head_dim, attention.head_dim)] * len(body.layers)
        self._layers = (Layer * len(body.layers))(
            *(self._layer(config, index, layer) for index, layer in enumerate(body.layers))
        )
        embed = packer.embedding("token_embd", body.embed_tokens.weight)
        is_tied = model.lm_head.weight is body.embed_tokens.weight
        head = embed if is_tied else packer.embedding("output", model.lm_head.weight)
        cos, sin = body.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(max_len).unsqueeze(0))
        half = attention.head_dim // 2
        self._config = Config(
            num_layers=len(body.layers),
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=kv_heads,
            head_dim=attention.head_dim,
            eps=config.rms_norm_eps,
            scale=attention.scaling,
            cos=packer.array(cos[0, :, :half]),
            sin=packer.array(sin[0, :, :half]),
            norm=packer.array(body.norm.weight),
            embed=embed,
            head=head,
            layers=self._layers,
        )
        self._handle: int | None = None
        self.num_bytes = packer.num_bytes

    def _layer(self, config: Any, index: int, layer: Any) -> Layer:
        packer, attention, mlp = self._packer, layer.self_attn, layer.mlp
        window = getattr(attention, "sliding_window", None)
        if config.model_type == "mistral":
            window = config.sliding_window
        return Layer(
            qkv=packer.linears(
                index,
                {f"self_attn.{name}": getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")},
            ),
            o=packer.linears(index, {"self_attn.o_proj": attention.o_proj}),
            gate_up=packer.gated(index, {"mlp.gate_proj": mlp.gate_proj, "mlp.up_proj": mlp.up_proj}),
            down=packer.linears(index, {"mlp.down_proj": mlp.down_proj}),
            input_norm=packer.array(layer.input_layernorm.weight),
            post_norm=packer.array(layer.post_attention_layernorm.weight),
            q_norm=packer.array(attention.q_norm.weight if hasattr(attention, "q_norm") else None),
            k_norm=packer.array(attention.k_norm.weight if hasattr(attention, "k_norm") else None),
            window=window or 0,
        )

    def attach(self, cache: KVCache, *, max_tokens: int, num_threads: int) -> None:
        """Get ready to run: take the pages' memory, and make buffers and threads; once per model.

        Args:
            cache: made from `shapes`, in float32 or bfloat16.
            max_tokens: the most tokens of one batch.
            num_threads: the caller's included.

        Raises:
            ModelLoadError: there is not as much memory.
        """
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        self._cache = cache  # keeps the memory alive
        config = self._config
        config.page_size, config.max_tokens, config.num_threads = cache.page_size, max_tokens, num_threads
        config.kv_is_bf16 = cache.keys[0].dtype is torch.bfloat16
        self._handle = self._library.model_create(byref(config))
        if self._handle is None:
            raise ModelLoadError(f"There is no memory for steps of {max_tokens} tokens: lower the budget")
        weakref.finalize(self, self._library.model_destroy, self._handle)

    def forward(
        self, batch: Batch, hidden_index: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Store the batch's keys and values, and return what it asks for.

        Args:
            batch: what to compute.
            hidden_index: `[H]` int64, places in the batch's tokens whose hidden states are wanted.

        Returns:
            Logits `[R, vocab_size]` of `batch.logits_index`, and the hidden states `[H, hidden_size]` after
            the final norm, or None when none are wanted; in float32.
        """
        num_rows, num_tokens, num_sequences = (
            len(batch.logits_index),
            len(batch.input_ids),
            len(batch.query_lens),
        )
        if max(num_tokens, num_rows) > self._config.max_tokens:
            raise ValueError(f"{num_tokens} tokens in a step that may have {self._config.max_tokens}")
        logits = torch.empty(num_rows, self._config.head.rows)
        hidden, rows = None, batch.logits_index
        if hidden_index is not None:
            hidden, rows = (
                torch.empty(len(hidden_index), self._config.hidden),
                torch.cat([rows, hidden_index]),
            )
        rows = rows.contiguous()
        lens = np.array(batch.query_lens, dtype=np.int32)
        pages, starts = _flatten(batch.page_tables)
        step = Step(
            num_tokens=num_tokens,
            num_sequences=num_sequences,
            num_rows=num_rows,
            num_hidden=len(rows) - num_rows,
            input_ids=batch.input_ids.data_ptr(),
            positions=batch.positions.data_ptr(),
            slots=batch.slots.data_ptr(),
            query_lens=lens.ctypes.data,
            pages=pages.ctypes.data,
            page_starts=starts.ctypes.data,
            rows=rows.data_ptr(),
            logits=logits.data_ptr(),
            hidden=None if hidden is None else hidden.data_ptr(),
        )
        self._library.model_forward(self._handle, byref(step))
        return logits, hidden

    def seconds(self) -> dict[str, float]:
        """Return the time spent in matrix products, in attention and in the rest, since the last call."""
        parts = (ctypes.c_double * 3)()
        self._library.model_seconds(self._handle, parts)
        return dict(zip(("linears", "attention", "other"), parts, strict=True))


def _flatten(tables: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    flat: list[int] = []
    starts: list[int] = []
    for table in tables:
        starts.append(len(flat))
        flat += table
    return np.array(flat, dtype=np.int32), np.array(starts, dtype=np.int32)


def make_native(
    model: PreTrainedModel, config: EngineConfig, source: ModelSource, *, max_len: int
) -> NativeModel | None:
    """Build the native form of a model that was loaded to the CPU.

    Args:
        model: as transformers loaded it, its linears unchanged.
        config: of the engine; `quantization` and `dtype` choose the form of the weights.
        source: where the model came from.
        max_len: positions that a sequence may have.

    Returns:
        None when the model runs on torch: its family or its dtype is not known here, or there is no compiler.

    Raises:
        ModelLoadError: low-bit weights were asked for, which torch alone does not have here.
    """
    reason = _unfit(model, config)
    library = None if reason else native_library()
    if library is None:
        if config.quantization in ("int8", "int4"):
            reason = reason or "needs a C compiler, and none works here (see the log)"
            raise ModelLoadError(
                f"`quantization` {config.quantization!r} of {config.model!r} is not possible on the CPU: "
                f"it {reason}; use 'none' or 'auto'"
            )
        return None
    blocks = None
    if source.gguf_file is not None and config.quantization == "auto" and config.dtype == "auto":
        blocks = GGUFBlocks(source.gguf_path, model.config)
    if blocks is not None and not blocks.is_quantized:
        blocks = None
    if config.quantization == "int4":
        format = Format.Q4
    elif config.quantization == "int8" or blocks is not None:
        format = Format.Q8
    else:
        format = Format.BF16 if model.dtype is torch.bfloat16 else Format.F32
    native = NativeModel(model, library, format=format, blocks=blocks, max_len=max_len)
    logger.info("The CPU library runs %s, with %.0f MB of weights", config.model, native.num_bytes / 1e6)
    return native


def _unfit(model: PreTrainedModel, config: EngineConfig) -> str | None:
    """Return why the library cannot run a model, to follow "it"; None when it can."""
    family = model.config.model_type
    if family not in _FAMILIES or not type(model).__module__.startswith("transformers."):
        return f"is of the family `{family}`, for which the CPU library has no code"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"has weights in {model.dtype}"
    head_dim = model.model.layers[0].self_attn.head_dim
    if model.config.hidden_act not in ("silu", "swish"):
        return f"uses the activation `{model.config.hidden_act}`"
    if head_dim % 16 or head_dim > _MAX_HEAD_DIM:
        return f"has heads of {head_dim} dimensions, not a multiple of 16 up to {_MAX_HEAD_DIM}"
    if config.lora_adapters or config.max_loras:
        return "has LoRA adapters"
    if config.tensor_parallel_size > 1:
        return "is shared by several processes"
    if config.compile or attention_backend_name() != "auto":
        return "is to run on torch, by `compile` or by the attention backend that was named"
    return None
