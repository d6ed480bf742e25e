"""Attend over pages with our own Triton kernels, on any GPU that Triton compiles for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton

from ..batch import Batch
from ..kv_cache import KVCache
from .backend import AttentionCall
from .triton_kernels import attend_kernel, combine_kernel, store_kernel

# Programs that keep one multiprocessor busy; keys are split until there are as many.
_PROGRAMS_PER_PROCESSOR = 4
_MAX_SPLITS = 32
# Prompts and drafts are split in one way only, as each number of splits is a kernel of its own to compile.
_PREFILL_SPLITS = 8
# Rows of a program's query block: tensor cores take 16 at least, more pay only where there are many tokens.
_MIN_ROWS, _PREFILL_ROWS = 16, 64


@dataclass(frozen=True, slots=True)
class _Part:
    """Sequences that one kernel call takes.

    Attributes:
        first_sequence, num_sequences: which of the batch.
        first_token, num_tokens: their query tokens.
        decode: each has one query token.
    """

    first_sequence: int
    num_sequences: int
    first_token: int
    num_tokens: int
    decode: bool


class TritonAttention:
    """Store keys and values and attend to them with two or three kernels a layer.

    All that a step's kernels read lies in one table with a fixed place on the device, which `plan` fills with
    a single copy, and the grids of a decode step depend on the number of sequences alone: a captured CUDA
    graph of the model stays right when `plan` is called with another batch of the same size.

    Args:
        cache: where keys and values lie.
        max_num_seqs: sequences that a batch may have.
        max_model_len: tokens that a sequence may have.
        num_processors: multiprocessors to keep busy; default: those of the cache's GPU, 1 without one (that
            is, in Triton's interpreter).
    """

    capturable = True

    def __init__(
        self,
        cache: KVCache,
        *,
        max_num_seqs: int,
        max_model_len: int,
        num_processors: int | None = None,
    ) -> None:
        self._cache = cache
        device = cache.keys[0].device
        if num_processors is None:
            on_gpu = device.type == "cuda"
            num_processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 1
        self._wanted_programs = num_processors * _PROGRAMS_PER_PROCESSOR
        # By sequence: tokens of its context, where its query tokens begin, its pages. One more row ends the
        # last query, and one more page is for a step that began before its sequence was known to be full.
        columns = 2 + max_model_len // cache.page_size + 1
        self._tables = torch.zeros(max_num_seqs + 1, columns, dtype=torch.int32, device=device)
        self._slots: torch.Tensor
        self._parts: list[_Part] = []

    def plan(self, batch: Batch) -> None:
        """Copy the batch's tables to the device. `batch.slots` is read when the layers run."""
        self._slots = batch.slots
        count, tokens = len(batch.query_lens), sum(batch.query_lens)
        most = max(map(len, batch.page_tables))
        table = np.zeros((count + 1, 2 + most), dtype=np.int32)
        table[:count, 0] = batch.context_lens
        table[1:, 1] = np.cumsum(batch.query_lens)
        for row, pages in zip(table, batch.page_tables, strict=False):
            row[2 : 2 + len(pages)] = pages
        host = torch.from_numpy(table)
        if self._tables.is_cuda:
            host = host.pin_memory()
        self._tables[: count + 1, : 2 + most].copy_(host, non_blocking=True)
        decodes = batch.num_decodes
        parts = [
            _Part(0, decodes, 0, decodes, decode=True),
            _Part(decodes, count - decodes, decodes, tokens - decodes, decode=False),
        ]
        self._parts = [part for part in parts if part.num_sequences]

    def run(self, call: AttentionCall) -> torch.Tensor:
        """Store the layer's new keys and values, then attend: to the decodes, and to the others."""
        self._store(call)
        num_heads, num_tokens, _ = call.query.shape
        output = call.query.new_empty(num_tokens, num_heads, call.value.shape[-1])
        for part in self._parts:
            self._attend(call, part, output[part.first_token : part.first_token + part.num_tokens])
        return output

    def _store(self, call: AttentionCall) -> None:
        key, value = call.key, call.value
        keys, values = self._cache.keys[call.layer_idx], self._cache.values[call.layer_idx]
        store_kernel[(key.shape[1], key.shape[0])](
            key, value, self._slots, keys, values,
            *key.stride(), *value.stride(), *keys.stride()[1:3], *values.stride()[1:3],
            KEY_DIM=key.shape[2], VALUE_DIM=value.shape[2],
            BLOCK=triton.next_power_of_2(max(key.shape[2], value.shape[2])), num_warps=1,
        )  # fmt: skip

    def _attend(self, call: AttentionCall, part: _Part, output: torch.Tensor) -> None:
        keys, values = self._cache.keys[call.layer_idx], self._cache.values[call.layer_idx]
        num_heads, kv_heads = call.query.shape[0], call.key.shape[0]
        key_dim, value_dim = call.key.shape[-1], call.value.shape[-1]
        group = num_heads // kv_heads
        rows = max(triton.next_power_of_2(group), _MIN_ROWS if part.decode else _PREFILL_ROWS)
        block_tokens = 1 if part.decode else rows // group
        blocks = part.num_sequences
        if not part.decode:
            blocks += part.num_tokens // block_tokens
        splits = self._splits(blocks * kv_heads, part.decode)
        partial, partial_log = output, output
        if splits > 1:
            shape = (part.num_tokens, num_heads, splits)
            partial = output.new_empty(*shape, value_dim, dtype=torch.float32)
            partial_log = output.new_empty(shape, dtype=torch.float32)
        wide = max(key_dim, value_dim) * keys.element_size() > 256
        attend_kernel[(blocks, kv_heads, splits)](
            call.query, keys, values, self._tables, call.sinks, call.alibi, output, partial, partial_log,
            *call.query.stride(), *keys.stride()[1:3], *values.stride()[1:3], self._tables.stride(0),
            part.first_sequence, part.num_sequences, part.first_token, call.scale, call.softcap or 0.0,
            NUM_HEADS=num_heads, GROUP=group, KEY_DIM=key_dim, VALUE_DIM=value_dim,
            PAGE_SIZE=self._cache.page_size, WINDOW=call.window or 0, SOFTCAP=call.softcap is not None,
            SINKS=call.sinks is not None, ALIBI=call.alibi is not None, DECODE=part.decode, SPLITS=splits,
            BLOCK_TOKENS=block_tokens, BLOCK_ROWS=rows, BLOCK_KEYS=32 if wide else 64,
            BLOCK_KEY_DIM=max(triton.next_power_of_2(key_dim), 16),
            BLOCK_VALUE_DIM=max(triton.next_power_of_2(value_dim), 16),
            num_warps=8 if wide and not part.decode else 4, num_stages=2,
        )  # fmt: skip
        if splits > 1:
            combine_kernel[(part.num_tokens * num_heads,)](
                partial, partial_log, output, VALUE_DIM=value_dim,
                BLOCK_VALUE_DIM=triton.next_power_of_2(value_dim), SPLITS=splits, num_warps=2,
            )  # fmt: skip

    def _splits(self, programs: int, decode: bool) -> int:
        """Return in how many parts, a power of 2, to cut the keys for so many programs without."""
        if not decode:
            return _PREFILL_SPLITS if 2 * programs <= self._wanted_programs else 1
        return min(triton.next_power_of_2(max(self._wanted_programs // programs, 1)), _MAX_SPLITS)
