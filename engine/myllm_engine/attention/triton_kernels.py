"""Define the Triton kernels of paged attention: storing, attending over splits of the keys, combining them.

One kernel attends for prompts, chunks, drafts to verify and decodes alike. A program takes some query tokens
of one sequence with all query heads that share a key head, packed as rows of one matrix (row =
`token * GROUP + head`), and runs over the visible keys, or over one of `SPLITS` even parts of them, with a
running softmax (Milakov and Gimelshein 2018, arXiv:1805.02867; Dao 2022, arXiv:2205.14135; splits are
"flash-decoding"). Scores are kept in base 2, where the GPU's exponential is.

`tables` holds a row per sequence: tokens of its context (the new ones included), where its query tokens
begin, and its pages; one more row ends the last sequence's query.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def store_kernel(
    key, value, slots, keys, values,
    key_head, key_token, key_dim_stride, value_head, value_token, value_dim_stride,
    keys_slot, keys_head, values_slot, values_head,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write one token's key and value of one head to the token's slot; grid (tokens, key heads)."""
    token, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + token).to(tl.int64)
    dims = tl.arange(0, BLOCK)
    at = key + head * key_head + token.to(tl.int64) * key_token + dims * key_dim_stride
    new = tl.load(at, mask=dims < KEY_DIM)
    tl.store(keys + slot * keys_slot + head * keys_head + dims, new, mask=dims < KEY_DIM)
    at = value + head * value_head + token.to(tl.int64) * value_token + dims * value_dim_stride
    new = tl.load(at, mask=dims < VALUE_DIM)
    tl.store(values + slot * values_slot + head * values_head + dims, new, mask=dims < VALUE_DIM)


# Numbers that change from step to step: a kernel compiled anew for each kind of them would stall requests.
@triton.jit(do_not_specialize=["first_sequence", "num_sequences", "first_token"])
def attend_kernel(
    query, keys, values, tables, sinks, slopes, output, partial, partial_log,
    query_head, query_token, query_dim_stride, keys_slot, keys_head, values_slot, values_head,
    tables_row, first_sequence, num_sequences, first_token, scale, softcap,
    NUM_HEADS: tl.constexpr, GROUP: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr,
    ALIBI: tl.constexpr, DECODE: tl.constexpr, SPLITS: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
):  # fmt: skip
    """Attend for up to BLOCK_TOKENS query tokens; grid (query blocks, key heads, SPLITS).

    The sequences `first_sequence:first_sequence + num_sequences` are taken; row 0 of `output` and `partial`
    is the query token `first_token`. With DECODE each has one query token and a block of its own. Otherwise
    the blocks of a sequence begin at `query_start // BLOCK_TOKENS + index`, which leaves each sequence at
    least as many as it needs, whatever the lengths: the grid depends on their sum alone.
    """
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if DECODE:
        sequence = block
        block_in_sequence = 0
    else:
        low, high = 0, num_sequences
        while low + 1 < high:
            middle = (low + high) // 2
            start = tl.load(tables + (middle + first_sequence) * tables_row + 1) - first_token
            if start // BLOCK_TOKENS + middle <= block:
                low = middle
            else:
                high = middle
        sequence = low
        start = tl.load(tables + (sequence + first_sequence) * tables_row + 1) - first_token
        block_in_sequence = block - (start // BLOCK_TOKENS + sequence)
    table = tables + (sequence + first_sequence) * tables_row
    context_len = tl.load(table)
    query_start = tl.load(table + 1)
    query_len = tl.load(table + tables_row + 1) - query_start
    first_query = block_in_sequence * BLOCK_TOKENS
    if first_query >= query_len:
        return

    rows = tl.arange(0, BLOCK_ROWS)
    queries = first_query + rows // GROUP
    heads = kv_head * GROUP + rows % GROUP
    row_mask = (rows < BLOCK_TOKENS * GROUP) & (queries < query_len)
    tokens = (query_start + queries).to(tl.int64)
    positions = context_len - query_len + queries
    key_dims = tl.arange(0, BLOCK_KEY_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE_DIM)
    q = tl.load(
        query + heads[:, None] * query_head + tokens[:, None] * query_token + key_dims * query_dim_stride,
        mask=row_mask[:, None] & (key_dims < KEY_DIM),
        other=0.0,
    )

    # The keys that any of these queries sees, and this program's part of them.
    end = context_len - query_len + tl.minimum(first_query + BLOCK_TOKENS, query_len)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(context_len - query_len + first_query - WINDOW + 1, 0)
        begin = begin // BLOCK_KEYS * BLOCK_KEYS
    if SPLITS > 1:
        each = tl.cdiv(tl.cdiv(end - begin, BLOCK_KEYS), SPLITS) * BLOCK_KEYS
        begin += split * each
        end = tl.minimum(end, begin + each)

    highest = tl.full([BLOCK_ROWS], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float32)
    if SINKS:
        sink = tl.load(sinks + heads, mask=row_mask, other=0.0).to(tl.float32) * LOG2E
        highest = tl.where(split == 0, sink, highest)
        total = tl.where(split == 0, 1.0, total)
    if ALIBI:
        slope = tl.load(slopes + heads, mask=row_mask, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_VALUE_DIM], tl.float32)
    for start in range(begin, end, BLOCK_KEYS):
        places = start + tl.arange(0, BLOCK_KEYS)
        in_reach = places < end
        pages = tl.load(table + 2 + places // PAGE_SIZE, mask=in_reach, other=0)
        slots = pages.to(tl.int64) * PAGE_SIZE + places % PAGE_SIZE
        k = tl.load(
            keys + slots[None, :] * keys_slot + kv_head * keys_head + key_dims[:, None],
            mask=in_reach[None, :] & (key_dims[:, None] < KEY_DIM),
            other=0.0,
        )
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            # tanh; where the exponential overflows, it is 1.
            scores = softcap * (1.0 - 2.0 / (tl.exp2(scores * (2.0 * LOG2E / softcap)) + 1.0))
        if ALIBI:
            scores += slope[:, None] * (places[None, :] - positions[:, None]).to(tl.float32)
        visible = in_reach[None, :] & (places[None, :] <= positions[:, None])
        if WINDOW > 0:
            visible = visible & (places[None, :] > positions[:, None] - WINDOW)
        scores = tl.where(visible, scores * LOG2E, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # A row that has seen no key yet.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(highest - base)
        v = tl.load(
            values + slots[:, None] * values_slot + kv_head * values_head + value_dims[None, :],
            mask=in_reach[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = higher

    sums = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    out_rows = (tokens - first_token) * NUM_HEADS + heads
    if SPLITS > 1:
        out_rows = out_rows * SPLITS + split
        # The logarithm of the part's sum of exponentials: -inf where it saw no key.
        tl.store(partial_log + out_rows, highest + tl.log2(total), mask=row_mask)
        target = partial
    else:
        target = output
    tl.store(
        target + out_rows[:, None] * VALUE_DIM + value_dims,
        sums.to(target.dtype.element_ty),
        mask=row_mask[:, None] & (value_dims < VALUE_DIM),
    )


@triton.jit
def combine_kernel(
    partial, partial_log, output,
    VALUE_DIM: tl.constexpr, BLOCK_VALUE_DIM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the splits of one query row, weighted by their sums of exponentials; grid (tokens * heads,)."""
    row = tl.program_id(0).to(tl.int64)
    splits = row * SPLITS + tl.arange(0, SPLITS)
    logs = tl.load(partial_log + splits)
    weights = tl.exp2(logs - tl.max(logs, 0))
    weights = weights / tl.sum(weights, 0)
    dims = tl.arange(0, BLOCK_VALUE_DIM)
    parts = tl.load(
        partial + splits[:, None] * VALUE_DIM + dims,
        mask=(weights > 0.0)[:, None] & (dims < VALUE_DIM),
        other=0.0,
    )
    joined = tl.sum(parts * weights[:, None], 0)
    tl.store(output + row * VALUE_DIM + dims, joined.to(output.dtype.element_ty), mask=dims < VALUE_DIM)
