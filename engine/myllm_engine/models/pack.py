"""Lay the weights of linear layers out once, as oneDNN's matrix kernels want them."""

from __future__ import annotations

import torch
from torch import nn


class PackedLinear(nn.Module):
    """Compute `nn.Linear` from a weight that is in oneDNN's blocked layout already.

    `F.linear` reorders the weight in every call, which takes as long as the product itself while the batch is
    small. There is no `weight` attribute: a model that reads it fails at its first forward pass, which is at
    load.

    Args:
        linear: the layer to replace; its weight is copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous())

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `hidden_states @ weight.T + bias`."""
        return torch.ops.mkldnn._linear_pointwise(hidden_states, self._packed, self._bias, "none", [], "")


def pack_linears(model: nn.Module) -> int:
    """Replace the model's bfloat16 CPU linears by packed ones; return how many.

    In float32 packing gains nothing with small batches, and other devices have layouts of their own.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Not a subclass: those do more than the product.
            if type(child) is nn.Linear and child.weight.dtype is torch.bfloat16 and child.weight.is_cpu:
                setattr(parent, name, PackedLinear(child))
                count += 1
    return count
