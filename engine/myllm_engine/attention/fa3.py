"""Attend with FlashAttention 3, where its package is installed (`tokenspeed-fa3`, or its own build)."""

from __future__ import annotations

import torch
from flash_attn_interface import flash_attn_with_kvcache

from ..batch import Batch
from ..kv_cache import KVCache
from .backend import AttentionCall
from .triton_attention import TritonAttention


class FlashAttention3(TritonAttention):
    """Store and plan as `TritonAttention` does, and attend with one call of FlashAttention 3 a layer.

    Takes a window, and none of softcap, sinks and ALiBi. Its documentation of `flash_attn_with_kvcache` has
    the layouts: pages as ours, causal from the bottom right, windows that count the tokens before.
    """

    def __init__(self, cache: KVCache, *, max_num_seqs: int, max_model_len: int) -> None:
        super().__init__(cache, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        # The columns of the table that it wants contiguous.
        self._context_lens = torch.zeros(max_num_seqs, dtype=torch.int32, device=self._tables.device)
        self._query_starts = torch.zeros(max_num_seqs + 1, dtype=torch.int32, device=self._tables.device)
        self._count = self._most_queries = 0

    def plan(self, batch: Batch) -> None:
        """Copy the batch's tables to the device."""
        super().plan(batch)
        self._count, self._most_queries = len(batch.query_lens), max(batch.query_lens)
        self._context_lens[: self._count].copy_(self._tables[: self._count, 0])
        self._query_starts[: self._count + 1].copy_(self._tables[: self._count + 1, 1])

    def run(self, call: AttentionCall) -> torch.Tensor:
        """Store the layer's new keys and values, then attend."""
        self._store(call)
        return flash_attn_with_kvcache(
            call.query.transpose(0, 1),
            self._cache.keys[call.layer_idx],
            self._cache.values[call.layer_idx],
            cache_seqlens=self._context_lens[: self._count],
            page_table=self._tables[: self._count, 2:],
            cu_seqlens_q=self._query_starts[: self._count + 1],
            max_seqlen_q=self._most_queries,
            softmax_scale=call.scale,
            causal=True,
            window_size=(-1, -1) if call.window is None else (call.window - 1, 0),
        )
