"""Multiply by sibling linear layers at once: query, key and value; gate and up.

One matrix product with a long output fills a GPU better than three short ones, and costs one launch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

# Names of sibling layers that read the same input, as transformers' families have them.
_SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)


class _Together(nn.Module):
    """Compute several linear layers at once and keep the result until each of them was asked for."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        super().__init__()
        self.sizes = [layer.out_features for layer in layers]
        has_bias = layers[0].bias is not None
        self.linear = nn.Linear(layers[0].in_features, sum(self.sizes), bias=has_bias, device="meta")
        for name in ("weight", "bias") if has_bias else ("weight",):
            joined = torch.cat([getattr(layer, name).detach() for layer in layers])
            setattr(self.linear, name, nn.Parameter(joined, requires_grad=False))
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    def output(self, index: int, hidden_states: torch.Tensor) -> torch.Tensor:
        # The very same tensor: whatever else a model passes in is computed anew, and right.
        if self._input is not hidden_states or self._outputs[index] is None:
            self._input = hidden_states
            self._outputs = list(self.linear(hidden_states).split(self.sizes, dim=-1))
        output = self._outputs[index]
        self._outputs[index] = None
        if not any(item is not None for item in self._outputs):
            self._input = None
        return output


class FusedLinear(nn.Module):
    """Stand in for one of several linear layers that are computed together.

    Args:
        together: what computes them.
        index: which of them this is.
        in_features, out_features: as of the layer that it replaces.
    """

    def __init__(self, together: _Together, index: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.together = together
        self.in_features, self.out_features = in_features, out_features
        self._index = index

    @property
    def weight(self) -> torch.Tensor:
        """Return the layer's own weight `[out_features, in_features]`, for models that look at it."""
        return self.together.linear.weight.split(self.together.sizes)[self._index]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return `hidden_states @ weight.T + bias`."""
        return self.together.output(self._index, hidden_states)


def fuse_linears(model: nn.Module, *, keep: Callable[[str], bool] = lambda name: False) -> int:
    """Replace sibling linear layers by fused ones; return how many groups there were.

    Layers of other types, such as those wrapped for LoRA, and siblings that differ in input width, dtype,
    device or in having a bias stay as they are.

    Args:
        model: changed in place.
        keep: whether the siblings of the module of this name (such as `model.layers.0.self_attn`) stay apart.
    """
    count = 0
    for name, parent in list(model.named_modules()):
        for names in _SIBLINGS:
            layers = [getattr(parent, child, None) for child in names]
            # Not a subclass: those do more than the product.
            if any(type(layer) is not nn.Linear for layer in layers) or keep(name):
                continue
            kinds = {
                (layer.in_features, layer.bias is None, layer.weight.dtype, layer.weight.device)
                for layer in layers
            }
            if len(kinds) > 1:
                continue
            together = _Together(layers)
            for index, (child, layer) in enumerate(zip(names, layers, strict=True)):
                setattr(parent, child, FusedLinear(together, index, layer.in_features, layer.out_features))
            count += 1
    return count
