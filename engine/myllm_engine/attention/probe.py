"""Find out what a model's attention layers keep per token, by running it once."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..batch import Batch
from ..kv_cache import LayerShape
from .backend import AttentionCall


class ProbeAttention:
    """Record each layer's shape and window; attention itself is plain and over the step's own tokens.

    A layer that attends twice, as DiffLlama's do, raises NotImplementedError: each has one place in the KV
    cache.

    Attributes:
        shapes: by `layer_idx`.
        windows: by `layer_idx`.
        features: names of the fields of `AttentionCall` beyond the plain ones that some layer sets.
    """

    capturable = False

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.windows: dict[int, int | None] = {}
        self.features: set[str] = set()

    def plan(self, batch: Batch) -> None:
        """Do nothing: there is no cache."""

    def run(self, call: AttentionCall) -> torch.Tensor:
        """Record the layer."""
        if call.layer_idx in self.shapes:
            raise NotImplementedError(f"layer {call.layer_idx} attends more than once")
        kv_heads, _, key_dim = call.key.shape
        self.shapes[call.layer_idx] = LayerShape(kv_heads, key_dim, call.value.shape[-1])
        self.windows[call.layer_idx] = call.window
        for name in ("window", "softcap", "sinks", "alibi"):
            if getattr(call, name) is not None:
                self.features.add(name)
        shared = call.query.shape[0] // kv_heads
        key, value = call.key.repeat_interleave(shared, dim=0), call.value.repeat_interleave(shared, dim=0)
        output = scaled_dot_product_attention(
            call.query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0), is_causal=True, scale=call.scale
        )
        return output[0].transpose(0, 1)
