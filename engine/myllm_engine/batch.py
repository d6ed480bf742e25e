"""Lay the tokens of one step out flat, with the tables that say where their keys and values are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .scheduler import Scheduled
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass over `T` tokens of `S` sequences.

    Sequences with one new token come first, the longest first, so that attention can take them in slices of
    similar length; then those with several.

    Attributes:
        input_ids: `[T]` int64.
        positions: `[T]` int64, each token's place in its own sequence.
        slots: `[T]` int64, `page * page_size + offset` of each token's key and value.
        query_lens: new tokens per sequence; sums to `T`.
        context_lens: tokens per sequence after this step, the new ones included.
        page_tables: pages per sequence, enough for `context_lens`.
        num_decodes: leading sequences with exactly one new token.
        logits_index: `[R]` int64, places in `T` that need logits.
        sampled: the `R` sequences that get a new token, in the order of `logits_index`.
        scheduled: the `S` parts of the step, in batch order.
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_lens: list[int]
    context_lens: list[int]
    page_tables: list[list[int]]
    num_decodes: int
    logits_index: torch.Tensor
    sampled: list[Sequence]
    scheduled: list[Scheduled]


def build_batch(step: list[Scheduled], *, page_size: int, device: torch.device) -> Batch:
    """Build the batch for what the scheduler chose."""
    decodes = [item for item in step if item.num_tokens == 1]
    decodes.sort(key=lambda item: item.sequence.num_computed, reverse=True)
    ordered = decodes + [item for item in step if item.num_tokens > 1]
    input_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logits_index: list[int] = []
    sampled: list[Sequence] = []
    context_lens: list[int] = []
    for item in ordered:
        sequence, start = item.sequence, item.sequence.num_computed
        end = start + item.num_tokens
        input_ids += sequence.token_ids[start:end]
        positions += range(start, end)
        pages = sequence.pages
        slots += [pages[place // page_size] * page_size + place % page_size for place in range(start, end)]
        context_lens.append(end)
        if item.samples:
            logits_index.append(len(input_ids) - 1)
            sampled.append(sequence)
    tables = torch.tensor([input_ids, positions, slots], dtype=torch.int64).to(device, non_blocking=True)
    return Batch(
        input_ids=tables[0],
        positions=tables[1],
        slots=tables[2],
        query_lens=[item.num_tokens for item in ordered],
        context_lens=context_lens,
        page_tables=[
            item.sequence.pages[: -(-end // page_size)]
            for item, end in zip(ordered, context_lens, strict=True)
        ],
        num_decodes=len(decodes),
        logits_index=torch.tensor(logits_index, dtype=torch.int64, device=device),
        sampled=sampled,
        scheduled=ordered,
    )
