"""Put our attention into families that do without transformers' attention interface.

An adapter replaces one method of a family's attention module. It computes the same queries, keys and values
from the same weights, and hands them to `paged_attention` as other families do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..attention import ATTENTION_NAME, paged_attention


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Return each head's slope `[num_heads]`, float32, for ALiBi's `slope * (key position - query position)`.

    With n the largest power of two that is not above `num_heads`, the first n are `2 ** (-8 i / n)` for
    i = 1 ... n, and the others `2 ** (-4 i / n)` for i = 1, 3, 5, ... (https://arxiv.org/abs/2108.12409, and
    the authors' code for other numbers of heads).
    """
    power = 2 ** math.floor(math.log2(num_heads))
    exponents = [8 * index / power for index in range(1, power + 1)]
    exponents += [4 * index / power for index in range(1, 2 * (num_heads - power), 2)]
    return torch.tensor([2.0**-exponent for exponent in exponents])


def _attn(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None
) -> tuple[torch.Tensor, None]:
    """Replace `_attn` of GPT-J and its relatives, which takes and returns `[1, num_heads, T, head_dim]`."""
    output, _ = paged_attention(
        self,
        query.to(value.dtype),  # rotated in float32 by CodeGen
        key.to(value.dtype),
        value,
        scaling=self.paged_scale,
        sliding_window=self.paged_window,
    )
    return output.transpose(1, 2), None


def _openai_gpt_attn(
    self: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> list[torch.Tensor]:
    # Keys come as `[1, num_heads, head_dim, T]`.
    return [_attn(self, query, key.transpose(-1, -2), value)[0]]


def _bloom(
    self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    output, _ = paged_attention(self, query, key, value, alibi=self.paged_alibi)
    return residual + self.dense(output.flatten(2)), None


def _falcon(
    self: Any,
    hidden_states: torch.Tensor,
    *args: Any,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if self.new_decoder_architecture:
        kv_heads = self.num_kv_heads
    else:
        kv_heads = 1 if self.multi_query else self.num_heads
    # Each key head's queries lie before its key and its value. transformers repeats keys and values here.
    fused = self.query_key_value(hidden_states)
    fused = fused.view(1, fused.shape[1], kv_heads, self.num_heads // kv_heads + 2, self.head_dim)
    query = fused[..., :-2, :].flatten(2, 3).transpose(1, 2)
    key, value = fused[..., -2, :].transpose(1, 2), fused[..., -1, :].transpose(1, 2)
    if self.paged_alibi is None:
        from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
    output, _ = paged_attention(self, query, key, value, alibi=self.paged_alibi)
    return self.dense(output.flatten(2)), None


def _mpt(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    fused = self.Wqkv(hidden_states)
    if self.clip_qkv:
        fused = fused.clamp(min=-self.clip_qkv, max=self.clip_qkv)
    query, key, value = fused.unflatten(2, (3, self.n_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
    output, _ = paged_attention(self, query, key, value, scaling=self.softmax_scale, alibi=self.paged_alibi)
    return self.out_proj(output.flatten(2)), None


def _xglm(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
    query, key, value = (
        projection(hidden_states).unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    output, _ = paged_attention(self, query, key, value, scaling=self.scaling)
    return self.out_proj(output.flatten(2)), None


# By family: the attention module's class, the method to replace, and by what.
_ADAPTERS: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "bloom": ("BloomAttention", "forward", _bloom),
    "codegen": ("CodeGenAttention", "_attn", _attn),
    "falcon": ("FalconAttention", "forward", _falcon),
    "gpt_neo": ("GPTNeoSelfAttention", "_attn", _attn),
    "gpt_neox_japanese": ("GPTNeoXJapaneseAttention", "_attn", _attn),
    "gptj": ("GPTJAttention", "_attn", _attn),
    "mpt": ("MptAttention", "forward", _mpt),
    "openai-gpt": ("Attention", "_attn", _openai_gpt_attn),
    "xglm": ("XGLMAttention", "forward", _xglm),
}
ADAPTED_FAMILIES = frozenset(_ADAPTERS)


def adapt(model: PreTrainedModel) -> None:
    """Replace the attention of a model of one of `ADAPTED_FAMILIES`."""
    config = model.config
    class_name, method, replacement = _ADAPTERS[config.model_type]
    alibi = _alibi(config, model.device)
    layers = [module for module in model.modules() if type(module).__name__ == class_name]
    for index, module in enumerate(layers):
        _describe(module, index, config, alibi)
        setattr(module, method, MethodType(replacement, module))
    # Where a mask is wanted for a name that has no masks, transformers makes none.
    config._attn_implementation = ATTENTION_NAME
    if config.model_type == "mpt":  # it converts its mask, even None; one of four dimensions is left as it is
        nothing = torch.zeros(1, 1, 1, 1, device=model.device)
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, "attention_mask": nothing}), with_kwargs=True
        )


def _alibi(config: PretrainedConfig, device: torch.device) -> torch.Tensor | None:
    """Return the slopes of families that have them; one tensor, so that a step's bias serves all layers."""
    if config.model_type == "falcon":
        if not config.alibi:
            return None
        # Falcon scales scores and bias together.
        head_dim = config.hidden_size // config.num_attention_heads
        return (alibi_slopes(config.num_attention_heads) / math.sqrt(head_dim)).to(device)
    if config.model_type in ("bloom", "mpt"):
        return alibi_slopes(config.num_attention_heads).to(device)
    return None


def _describe(module: nn.Module, index: int, config: PretrainedConfig, alibi: torch.Tensor | None) -> None:
    """Give a module what its adapter reads."""
    attention: Any = module
    attention.layer_idx = index
    attention.paged_alibi = alibi
    attention.paged_scale = attention.paged_window = None
    if config.model_type == "gpt_neo":
        attention.paged_scale = 1.0
        attention.paged_window = config.window_size if attention.attention_type == "local" else None
