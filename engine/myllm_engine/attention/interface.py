"""Put our attention into transformers' models, through their attention interface."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from transformers import AttentionInterface

from ..context import current_backend
from .backend import AttentionCall

ATTENTION_NAME = "myllm"
# Tensors that models hand on to every layer, and that attention has no use for.
_HARMLESS = {"position_ids", "cache_position", "input_ids", "inputs_embeds"}


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    alibi: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with the backend of the running forward pass; transformers calls this in every attention layer.

    Args:
        module: the attention layer; `layer_idx` says which one.
        query: `[1, num_heads, T, key_dim]`.
        key: `[1, num_kv_heads, T, key_dim]`.
        value: `[1, num_kv_heads, T, value_dim]`.
        attention_mask: always None, as the name `myllm` has no mask function.
        scaling, sliding_window, softcap, s_aux: transformers' names for what `AttentionCall` explains.
        alibi: slopes per head, from our own adapters alone.

    Returns:
        `[1, T, num_heads, value_dim]` and None in the place of attention weights.

    Raises:
        NotImplementedError: the layer wants something that would be left out of the result.
    """
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    reason = None
    if not is_causal:
        reason = "lets tokens attend to later ones"
    elif attention_mask is not None:
        reason = "hides tokens by a mask of its own"
    elif ours := sorted(name for name, value in kwargs.items() if _matters(name, value)):
        reason = f"changes its attention by `{ours[0]}`"
    if reason is not None:
        raise NotImplementedError(f"`{type(module).__name__}` {reason}")
    call = AttentionCall(
        layer_idx=module.layer_idx,
        query=query[0],
        key=key[0],
        value=value[0],
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window or None,
        softcap=softcap or None,
        sinks=s_aux,
        alibi=alibi,
    )
    if torch.compiler.is_compiling():
        fields = (getattr(call, item.name) for item in dataclasses.fields(call))
        return _attend(*fields).unsqueeze(0), None
    return current_backend().run(call).unsqueeze(0), None


def _matters(name: str, value: Any) -> bool:
    """Tell whether an argument that we do not know could change the result: tensors could."""
    return isinstance(value, torch.Tensor) and name not in _HARMLESS


@torch.library.custom_op("myllm::attend", mutates_args=())
def _attend(
    layer_idx: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    alibi: torch.Tensor | None,
) -> torch.Tensor:
    """Attend, as one operation that `torch.compile` does not look into; takes `AttentionCall`'s fields."""
    call = AttentionCall(layer_idx, query, key, value, scale, window, softcap, sinks, alibi)
    return current_backend().run(call).contiguous()


@_attend.register_fake
def _(layer_idx: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[2])


def register_attention() -> None:
    """Make `ATTENTION_NAME` known to transformers; may be called again."""
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
