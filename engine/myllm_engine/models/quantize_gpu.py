"""Keep a model's linear weights in 8 or 4 bits on a GPU, quantised at load.

Decoding reads every weight for a few rows of input: half or a quarter of the bytes is that much less time.
"""

from __future__ import annotations

import logging

import torch
from torch import nn
from torch.nn.functional import linear

from ..errors import ModelLoadError

logger = logging.getLogger(__name__)

# Weights of one row that share a scale; the largest that divides the width.
_GROUPS = {8: (128, 64, 32), 4: (64, 32)}
# More rows of input than this are multiplied by the dequantised weight: dequantising costs as much memory
# traffic as some hundred rows' products do arithmetic.
_MAX_KERNEL_ROWS = 128


def group_size(in_features: int, bits: int) -> int | None:
    """Return how many weights of a row share a scale; None: the row cannot be cut into groups."""
    width = in_features if bits == 8 else in_features / 2  # a byte holds a weight of each half
    return next((size for size in _GROUPS[bits] if width % size == 0), None)


def quantize_groups(
    weight: torch.Tensor, bits: int, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round a weight `[N, K]` to 8 bits around zero, or to 4 bits between each group's extremes.

    Returns:
        Numbers `[N, K]` (int8 from -127 to 127, or uint8 from 0 to 15), scales and zeros, both
        `[N, K / group]` float32: a weight is `number * scale + zero`.
    """
    groups = weight.float().unflatten(1, (-1, group))
    if bits == 8:
        scale = groups.abs().amax(-1).clamp_(min=1e-8) / 127
        numbers = (groups / scale.unsqueeze(-1)).round().to(torch.int8)
        return numbers.flatten(1), scale, torch.zeros_like(scale)
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp_(min=1e-8)
    numbers = ((groups - low.unsqueeze(-1)) / scale.unsqueeze(-1)).round().clamp_(0, 15).to(torch.uint8)
    return numbers.flatten(1), scale, low


class QuantizedLinear(nn.Module):
    """Compute `nn.Linear` from a weight in 8 or 4 bits, with a scale per group of 32 to 128 weights.

    Few rows of input go through a Triton kernel that reads the weight as it is stored; for many it is
    dequantised first. There is no `weight` attribute: a model that reads it fails at its first forward pass,
    which is at load.

    Layouts: 8 bits `[N, K]` int8; 4 bits `[N, K / 2]` uint8, byte `i` of a row holds weight `i` in its low
    and `i + K / 2` in its high half. Scales and zeros `[K / group, N]` float32.

    Args:
        layer: the layer to replace.
        bits: 8 or 4.
        group: weights that share a scale; divides `layer.in_features` (with 4 bits: half of it).
    """

    def __init__(self, layer: nn.Linear, bits: int, group: int) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._bits, self._group = bits, group
        numbers, scales, zeros = quantize_groups(layer.weight.detach(), bits, group)
        if bits == 4:
            low, high = numbers.chunk(2, dim=1)
            numbers = low | (high << 4)
        self.register_buffer("numbers", numbers.contiguous())
        self.register_buffer("scales", scales.t().contiguous())
        self.register_buffer("zeros", zeros.t().contiguous() if bits == 4 else None)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight `[N, K]` that the layer multiplies by."""
        numbers = self.numbers
        if self._bits == 4:
            numbers = torch.cat([numbers & 0xF, numbers >> 4], dim=1)
        weight = numbers.unflatten(1, (-1, self._group)) * self.scales.t().unsqueeze(-1)
        if self._bits == 4:
            weight += self.zeros.t().unsqueeze(-1)
        return weight.flatten(1).to(dtype)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `hidden_states @ weight.T + bias`."""
        rows = hidden_states.flatten(0, -2)
        if rows.shape[0] > _MAX_KERNEL_ROWS:
            return linear(hidden_states, self.dequantized(hidden_states.dtype), self.bias)
        return self._multiply(rows.contiguous()).unflatten(0, hidden_states.shape[:-1])

    def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
        import triton

        from .quantize_kernel import low_bit_kernel

        count, columns = rows.shape[0], self.out_features
        block_m = max(16, min(triton.next_power_of_2(count), 64))
        block_n = 16 if columns <= 4096 and block_m == 16 else 64
        output = rows.new_empty(count, columns)
        low_bit_kernel[(triton.cdiv(columns, block_n), triton.cdiv(count, block_m))](
            rows, self.numbers, self.scales, self.zeros, self.bias, output, count, rows.stride(0),
            N=columns, K=self.in_features, BITS=self._bits, BIAS=self.bias is not None, BLOCK_M=block_m,
            BLOCK_N=block_n, GROUP=self._group, num_warps=4, num_stages=4,
        )  # fmt: skip
        return output


def quantize_linears(model: nn.Module, bits: int) -> int:
    """Replace the model's linear layers by `QuantizedLinear`, but for the head; return how many.

    The head stays: it often shares its weight with the embedding, and its errors go straight into the choice
    of tokens. So do experts that are no `nn.Linear`.

    Raises:
        ModelLoadError: Triton is not installed, or no layer of the model can be quantised.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ModelLoadError(
            "`quantization` on a GPU needs the package `triton`: pip install triton"
        ) from error
    head = model.get_output_embeddings()
    head = getattr(head, "base", head)  # inside what adds LoRA adapters
    count, left = 0, []
    for name, parent in list(model.named_modules()):
        for child, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or layer is head:  # subclasses do more than the product
                continue
            group = group_size(layer.in_features, bits)
            if group is None:
                left.append(f"{name}.{child}")
                continue
            setattr(parent, child, QuantizedLinear(layer, bits, group))
            count += 1
    if left:
        logger.warning("Layers too odd in width for int%d stay as they are: %s", bits, ", ".join(left))
    if count == 0:
        raise ModelLoadError(f"`quantization` 'int{bits}' applies to no layer of this model")
    return count
