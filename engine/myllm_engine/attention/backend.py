"""Define what an attention backend is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..batch import Batch


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One layer's attention over the flat tokens of a batch.

    Attributes:
        layer_idx: the layer, an index into the KV cache.
        query: `[num_heads, T, key_dim]`.
        key: `[num_kv_heads, T, key_dim]`; `num_heads` is a multiple of `num_kv_heads`.
        value: `[num_kv_heads, T, value_dim]`.
        scale: multiplies the scores.
        window: a token sees itself and the `window - 1` tokens before it; None: all before it.
        softcap: scores become `softcap * tanh(scores / softcap)` (Gemma 2); None: off.
        sinks: `[num_heads]` one extra score per head that takes weight and gives no value (gpt-oss); None:
            off.
        alibi: `[num_heads]` slopes of a bias by distance: scores become
            `score + slope * (key position - query position)` (ALiBi: Bloom, MPT); None: off.
    """

    layer_idx: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    alibi: torch.Tensor | None = None


class AttentionBackend(Protocol):
    """Store a step's keys and values and attend to them; `plan` once per step, `run` once per layer.

    Attributes:
        capturable: what `run` does on the device depends on the batch through fixed places in memory that
            `plan` fills, so that a CUDA graph of it can be replayed for every batch of as many decodes.
    """

    capturable: bool

    def plan(self, batch: Batch) -> None:
        """Prepare what all layers share."""

    def run(self, call: AttentionCall) -> torch.Tensor:
        """Return the attention output `[T, num_heads, value_dim]`."""
