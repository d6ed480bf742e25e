"""Pack a model's linears for the native library, from GGUF's own blocks or from floats."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from ctypes import byref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...errors import ModelLoadError
from .library import Format, Linear, Source

if TYPE_CHECKING:
    import ctypes

# ggml's type names of blocks that are taken as they are.
_AS_THEY_ARE = {"Q4_0": Source.Q4_0, "Q4_1": Source.Q4_1, "Q8_0": Source.Q8_0}
_DENSE = {"F32", "F16", "BF16"}
_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_GROUP, _BLOCK = 16, 32


@dataclass(frozen=True, slots=True)
class Blocks:
    """Hold a weight as GGUF's blocks: `data` `[rows, bytes]`."""

    source: Source
    data: np.ndarray


class GGUFBlocks:
    """Hand out the quantised weights of a GGUF file by their names in transformers.

    Args:
        path: the file.
        config: of the model, as transformers has it.

    Attributes:
        is_quantized: whether the file has weights that are not plain floats.
    """

    def __init__(self, path: Path, config: Any) -> None:
        import gguf

        from ..gguf import fast_gguf_reading

        with fast_gguf_reading():
            self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        self._config = config
        self.is_quantized = any(
            tensor.tensor_type.name not in _DENSE and len(tensor.shape) > 1
            for tensor in self._tensors.values()
        )

    def get(self, layer: int | None, name: str) -> Blocks | None:
        """Return the blocks of a linear, such as (3, "mlp.up_proj"); None for types that are not taken.

        The layer None means the name of a tensor in the file.
        """
        key = name if layer is None else f"blk.{layer}.{_GGUF_NAMES[name]}"
        tensor = self._tensors.get(f"{key}.weight")
        if tensor is None or tensor.tensor_type.name not in _AS_THEY_ARE:
            return None
        data = np.asarray(tensor.data)
        heads = {
            "self_attn.q_proj": self._config.num_attention_heads,
            "self_attn.k_proj": self._config.num_key_value_heads,
        }.get(name)
        if heads is not None and self._config.model_type in ("llama", "mistral"):
            data = data[_unpermuted(len(data), heads)]
        return Blocks(_AS_THEY_ARE[tensor.tensor_type.name], data)


def _unpermuted(rows: int, heads: int) -> np.ndarray:
    """Return the file's row of each of transformers' rows.

    llama.cpp's converter lets the two halves of a head that are rotated together alternate
    (`convert_hf_to_gguf.py`, `LlamaModel.permute`).
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()


class Packer:
    """Pack linears, and own the memory of all that it packed.

    Args:
        library: the native library.
        format: of weights that come as floats.
        blocks: of the GGUF file whose quantised weights are to be kept; None: all weights come as floats.
    """

    def __init__(self, library: ctypes.CDLL, format: Format, blocks: GGUFBlocks | None) -> None:
        self._library, self._format, self._blocks = library, format, blocks
        self._packed: list[Linear] = []
        self._arrays: list[np.ndarray] = []
        self._finalizer = weakref.finalize(self, _free, library, self._packed)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all packed weights, scales included."""
        return sum(packed_bytes(linear) for linear in self._packed)

    def array(self, tensor: torch.Tensor | None) -> int | None:
        """Return the address of a float32 copy of `tensor` that lives as long as the packer."""
        if tensor is None:
            return None
        array = tensor.detach().to(torch.float32, copy=True).contiguous().numpy()
        self._arrays.append(array)
        return array.ctypes.data

    def linears(self, layer: int, parts: Mapping[str, nn.Linear]) -> Linear:
        """Pack the rows of several linears after each other as one."""
        weights = self._weights(layer, parts)
        return self._pack([np.concatenate([data for _, data in weights])], weights[0][0], self._bias(parts))

    def gated(self, layer: int, parts: Mapping[str, nn.Linear]) -> Linear:
        """Pack two linears as one, 16 rows of each in turns, both filled up to whole blocks of 32 rows."""
        weights = self._weights(layer, parts)
        bias = self._bias(parts)
        if bias is not None:
            bias = torch.from_numpy(_in_turns([half.numpy() for half in bias.chunk(2)]))
        return self._pack([_in_turns([data for _, data in weights])], weights[0][0], bias)

    def embedding(self, name: str, weight: torch.Tensor) -> Linear:
        """Pack an embedding, which is a linear from one-hot vectors; `name` is the file's.

        Its rows count more than others: with 4-bit weights it gets 8 bits.
        """
        blocks = None if self._blocks is None else self._blocks.get(None, name)
        if blocks is not None:
            return self._pack([blocks.data], blocks.source, None)
        format = Format.Q8 if self._format is Format.Q4 else self._format
        return self._pack([_floats(weight)], Source.FLOAT, None, format)

    def _weights(self, layer: int, parts: Mapping[str, nn.Linear]) -> list[tuple[Source, np.ndarray]]:
        found = [None if self._blocks is None else self._blocks.get(layer, name) for name in parts]
        if all(item is not None for item in found) and len({item.source for item in found if item}) == 1:
            return [(item.source, item.data) for item in found if item is not None]
        return [(Source.FLOAT, _floats(linear.weight)) for linear in parts.values()]

    def _bias(self, parts: Mapping[str, nn.Linear]) -> torch.Tensor | None:
        biases = [
            torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
            for linear in parts.values()
        ]
        return None if all(linear.bias is None for linear in parts.values()) else torch.cat(biases)

    def _pack(
        self, rows: list[np.ndarray], source: Source, bias: torch.Tensor | None, format: Format | None = None
    ) -> Linear:
        data = np.ascontiguousarray(rows[0])
        cols = data.shape[1]
        if source is Source.FLOAT:
            format = format or self._format
        else:
            cols = cols // {Source.Q4_0: 18, Source.Q4_1: 20, Source.Q8_0: 34}[source] * _BLOCK
            format = Format.Q8 if source is Source.Q8_0 else Format.Q4
        linear = Linear(format=format, rows=len(data), cols=cols, bias=self.array(bias))
        self._packed.append(linear)
        if self._library.linear_pack(byref(linear), data.ctypes.data, source) != 0:
            raise ModelLoadError(f"There is no memory for {packed_bytes(linear)} more bytes of weights")
        return linear


def packed_bytes(linear: Linear) -> int:
    """Return the bytes of a packed linear's weights and scales."""
    blocks = -(-linear.rows // _GROUP) * -(-linear.cols // _BLOCK)
    return blocks * {Format.F32: 2048, Format.BF16: 1024, Format.Q8: 544, Format.Q4: 320}[linear.format]


def _floats(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().float().contiguous().numpy()


def _in_turns(halves: list[np.ndarray]) -> np.ndarray:
    missing = -len(halves[0]) % _BLOCK
    # Rows of zero bytes are zero weights in every source.
    filled = [np.concatenate([half, np.zeros((missing, *half.shape[1:]), half.dtype)]) for half in halves]
    return np.stack([half.reshape(-1, _GROUP, *half.shape[1:]) for half in filled], axis=1).reshape(
        -1, *halves[0].shape[1:]
    )


def _free(library: ctypes.CDLL, packed: list[Linear]) -> None:
    for linear in packed:
        library.linear_free(byref(linear))
