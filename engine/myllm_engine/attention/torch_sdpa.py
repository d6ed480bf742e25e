"""Attend over pages with plain torch: gather pages, then `scaled_dot_product_attention`."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from ..batch import Batch
from ..kv_cache import KVCache
from .backend import AttentionCall

# A slice of decoding sequences is cut where a sequence has less than this share of the longest one's pages:
# below it, attending to padding costs more than another kernel call.
_MIN_FILL = 0.6


@dataclass(slots=True)
class _Group:
    """Sequences that attend in one call: rows `start:end` of the batch's tokens.

    Attributes:
        start, end: the rows.
        pages: `[num_sequences * pages_each]` int64; None when the step holds the whole sequence, as no page
            is read.
        context_lens: `[num_sequences]` int64.
        query_len: new tokens per sequence.
        length: keys per sequence that attention is computed over, padding included.
        masks: additive masks by window and slopes, `[num_sequences, 1 or num_heads, query_len, length]`, or
            None when nothing is hidden.
    """

    start: int
    end: int
    pages: torch.Tensor | None
    context_lens: torch.Tensor
    query_len: int
    length: int
    padded: bool
    masks: dict[tuple[int | None, torch.Tensor | None], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, call: AttentionCall) -> torch.Tensor | None:
        key = call.window, call.alibi  # a tensor is a key by identity, and layers share the one of slopes
        if key not in self.masks:
            self.masks[key] = self._make_mask(call.window, call.alibi, call.query.dtype)
        return self.masks[key]

    def _make_mask(
        self, window: int | None, alibi: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor | None:
        hidden_by_window = window is not None and window < self.length
        if self.query_len == 1 and not self.padded and not hidden_by_window and alibi is None:
            return None
        device = self.context_lens.device
        last = self.context_lens.view(-1, 1, 1) - 1
        queries = last - torch.arange(self.query_len - 1, -1, -1, device=device).view(1, -1, 1)
        keys = torch.arange(self.length, device=device).view(1, 1, -1)
        visible = keys <= queries
        if window is not None:
            visible &= keys > queries - window
        if alibi is None:
            mask = torch.zeros(visible.shape, dtype=dtype, device=device).unsqueeze(1)
        else:
            mask = ((keys - queries).unsqueeze(1) * alibi.view(1, -1, 1, 1)).to(dtype)
        return mask.masked_fill_(~visible.unsqueeze(1), float("-inf"))


class TorchAttention:
    """Gather each sequence's pages and attend with torch's own kernels; right on every device.

    Decoding sequences go together in slices of similar length. The query heads that share a key head are laid
    out as query rows (`enable_gqa` is 3 to 5 times slower on CPU). A prompt that starts in this step reads no
    page at all.
    """

    capturable = False

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._slots: torch.Tensor
        self._groups: list[_Group] = []

    def plan(self, batch: Batch) -> None:
        """Group the batch's sequences."""
        self._slots = batch.slots
        self._groups = []
        start = 0
        while start < batch.num_decodes:
            most = len(batch.page_tables[start])
            end = start + 1
            while end < batch.num_decodes and len(batch.page_tables[end]) >= _MIN_FILL * most:
                end += 1
            self._groups.append(self._group(batch, start, end, row=start))
            start = end
        row = batch.num_decodes
        for index in range(batch.num_decodes, len(batch.query_lens)):
            self._groups.append(self._group(batch, index, index + 1, row=row))
            row += batch.query_lens[index]

    def _group(self, batch: Batch, first: int, last: int, *, row: int) -> _Group:
        device = batch.slots.device
        context_lens = batch.context_lens[first:last]
        length, query_len = context_lens[0], batch.query_lens[first]
        pages = None
        if query_len < length or last - first > 1:
            tables = batch.page_tables[first:last]
            most = len(tables[0])
            padded = [page for table in tables for page in (*table, *[0] * (most - len(table)))]
            pages = torch.tensor(padded, dtype=torch.int64, device=device)
        return _Group(
            start=row,
            end=row + (last - first) * query_len,
            pages=pages,
            context_lens=torch.tensor(context_lens, dtype=torch.int64, device=device),
            query_len=query_len,
            length=length,
            padded=context_lens[-1] < length,
        )

    def run(self, call: AttentionCall) -> torch.Tensor:
        """Store the layer's new keys and values, then attend group by group."""
        keys, values = self._cache.keys[call.layer_idx], self._cache.values[call.layer_idx]
        keys.flatten(0, 1).index_copy_(0, self._slots, call.key.transpose(0, 1))
        values.flatten(0, 1).index_copy_(0, self._slots, call.value.transpose(0, 1))
        outputs = []
        for group in self._groups:
            if group.pages is None:
                key = call.key[:, group.start : group.end].unsqueeze(0)
                value = call.value[:, group.start : group.end].unsqueeze(0)
            else:
                key, value = _gather(keys, group), _gather(values, group)
            attend = _attend_decode if group.query_len == 1 else _attend_prefill
            outputs.append(attend(call, group, key, value))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _gather(cache: torch.Tensor, group: _Group) -> torch.Tensor:
    """Return the group's `[num_sequences, num_kv_heads, length, dim]`, a view of freshly gathered pages."""
    pages = cache.index_select(0, group.pages)
    by_sequence = pages.view(len(group.context_lens), -1, *cache.shape[2:])
    return by_sequence[:, : group.length].transpose(1, 2)


def _attend_decode(
    call: AttentionCall, group: _Group, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    num_heads, num_sequences = call.query.shape[0], group.end - group.start
    kv_heads = key.shape[1]
    query = call.query[:, group.start : group.end].transpose(0, 1)
    # [sequences, heads, dim] -> [sequences, kv_heads, heads of one kv head, dim]: attention with several
    # query rows.
    query = query.reshape(num_sequences, kv_heads, num_heads // kv_heads, -1)
    sinks = None if call.sinks is None else call.sinks.view(1, kv_heads, -1, 1)
    mask = group.mask(call)
    if call.alibi is not None:
        mask = mask.view(num_sequences, kv_heads, -1, group.length)
    output = _attend(call, query, key, value, mask, sinks=sinks)
    return output.reshape(num_sequences, num_heads, -1)


def _attend_prefill(
    call: AttentionCall, group: _Group, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    num_heads = call.query.shape[0]
    shared = num_heads // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    query = call.query[:, group.start : group.end].unsqueeze(0)
    sinks = None if call.sinks is None else call.sinks.view(1, num_heads, 1, 1)
    whole = group.pages is None and (call.window is None or call.window >= group.length)
    if whole and call.softcap is None and sinks is None and call.alibi is None:
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=call.scale)
    else:
        output = _attend(call, query, key, value, group.mask(call), sinks=sinks)
    return output[0].transpose(0, 1)


def _attend(
    call: AttentionCall,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend `[B, heads, rows, dim]` to `[B, heads, length, dim]` under an additive mask."""
    if call.softcap is None and sinks is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=call.scale)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * call.scale
    if call.softcap is not None:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    if mask is not None:
        scores = scores + mask
    if sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        column = sinks.float().expand(scores.shape[0], -1, scores.shape[2], 1)
        weights = torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    return torch.matmul(weights.to(value.dtype), value)
