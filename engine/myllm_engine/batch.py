"""Lay the tokens of one step out flat, with the tables that say where their keys and values are."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch

from .scheduler import Scheduled
from .sequence import Row, SeenImages, Sequence


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Name rows of logits that give the log-probabilities of a prompt's own tokens.

    Attributes:
        sequence: whose prompt.
        targets: the tokens that the rows are about, one a row.
    """

    sequence: Sequence
    targets: list[int]


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one forward pass over `T` tokens of `S` sequences.

    Sequences with one new token come first, the longest first, so that attention can take them in slices of
    similar length; then those with several.

    Attributes:
        input_ids: `[T]` int64.
        pending_places: `[P]` int64, places in `input_ids` whose token is still on the device and stands as 0.
        pending_rows: `[P]` int64, the rows of the step before that draw these tokens.
        positions: `[T]` int64, each token's place in its own sequence.
        slots: `[T]` int64, `page * page_size + offset` of each token's key and value.
        query_lens: new tokens per sequence; sums to `T`.
        context_lens: tokens per sequence after this step, the new ones included.
        page_tables: pages per sequence, enough for `context_lens`.
        num_decodes: leading sequences with exactly one new token.
        logits_index: `[R]` int64, places in `T` that need logits: those of `rows`, then of `prompt_rows`.
        rows: the places that get a new token; a sequence with drafts has one more than drafts.
        prompt_rows: prompts that get log-probabilities.
        hidden_index: `[H]` int64, places in `T` whose hidden states are pooled.
        pooled: the sequences these belong to, with how many places each has, and whether the prompt ends.
        read: sequences whose prompt ends in this step and for which nothing is drawn.
        adapters: `[T]`, the number of each token's LoRA adapter, or 0; None when none has one.
        image_index: `[I]` int64, places in `T` of image tokens of prompts.
        images: whose features these take, and from which to which of them; `I` in all.
        scheduled: the `S` parts of the step, in batch order.
    """

    input_ids: torch.Tensor
    pending_places: torch.Tensor
    pending_rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_lens: list[int]
    context_lens: list[int]
    page_tables: list[list[int]]
    num_decodes: int
    logits_index: torch.Tensor
    rows: list[Row]
    prompt_rows: list[PromptRows]
    hidden_index: torch.Tensor
    pooled: list[tuple[Sequence, int, bool]]
    read: list[Sequence]
    adapters: list[int] | None
    image_index: torch.Tensor
    images: list[tuple[SeenImages, int, int]]
    scheduled: list[Scheduled]


def build_batch(step: list[Scheduled], *, page_size: int, device: torch.device) -> Batch:
    """Build the batch for what the scheduler chose."""
    decodes = [item for item in step if item.num_tokens == 1]
    decodes.sort(key=lambda item: item.sequence.num_computed, reverse=True)
    ordered = decodes + [item for item in step if item.num_tokens > 1]
    input_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    context_lens: list[int] = []
    adapters: list[int] = []
    pending: list[tuple[int, int]] = []
    index = _Index()
    for item in ordered:
        sequence, start = item.sequence, item.sequence.num_computed
        end = start + item.num_tokens
        index.add(item, at=len(input_ids))
        input_ids += sequence.token_ids[start:end]
        if sequence.num_pending and item.samples:
            pending.append((len(input_ids), sequence.pending_row))
            input_ids.append(0)
        if item.samples:
            input_ids += sequence.drafts
        positions += range(start, end)
        pages = sequence.pages
        slots += [pages[place // page_size] * page_size + place % page_size for place in range(start, end)]
        context_lens.append(end)
        adapters += [sequence.adapter] * item.num_tokens
    tensors = _to_device(
        [
            input_ids,
            positions,
            slots,
            [place for place, _ in pending],
            [row for _, row in pending],
            index.samples + index.prompts,
            index.hidden,
            index.image_places,
        ],
        device,
    )
    return Batch(
        input_ids=tensors[0],
        positions=tensors[1],
        slots=tensors[2],
        pending_places=tensors[3],
        pending_rows=tensors[4],
        logits_index=tensors[5],
        hidden_index=tensors[6],
        query_lens=[item.num_tokens for item in ordered],
        context_lens=context_lens,
        page_tables=[
            item.sequence.pages[: -(-end // page_size)]
            for item, end in zip(ordered, context_lens, strict=True)
        ],
        num_decodes=len(decodes),
        rows=index.rows,
        prompt_rows=index.prompt_rows,
        pooled=index.pooled,
        read=index.read,
        adapters=adapters if any(adapters) else None,
        image_index=tensors[7],
        images=index.images,
        scheduled=ordered,
    )


def _to_device(columns: list[list[int]], device: torch.device) -> list[torch.Tensor]:
    """Return each list as int64, all in one copy, which does not wait for what the device does."""
    flat = torch.tensor([number for column in columns for number in column], dtype=torch.int64)
    if device.type == "cuda":
        flat = flat.pin_memory()
    return list(flat.to(device, non_blocking=True).split([len(column) for column in columns]))


class _Index:
    """Gather which places of a batch are of interest, and for what."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.samples: list[int] = []
        self.prompt_rows: list[PromptRows] = []
        self.prompts: list[int] = []
        self.pooled: list[tuple[Sequence, int, bool]] = []
        self.hidden: list[int] = []
        self.images: list[tuple[SeenImages, int, int]] = []
        self.image_places: list[int] = []
        self.read: list[Sequence] = []

    def add(self, item: Scheduled, *, at: int) -> None:
        """Add a sequence whose new tokens begin at place `at` of the batch."""
        sequence, start = item.sequence, item.sequence.num_computed
        end = start + item.num_tokens
        if sequence.images is not None:
            places = sequence.images.inputs.places
            first, last = bisect_left(places, start), bisect_left(places, end)
            if first < last:
                self.images.append((sequence.images, first, last))
                self.image_places += [at + place - start for place in places[first:last]]
        if sequence.wants_prompt_logprobs:
            # The token at `place` has its log-probability in the row before. A preempted sequence has some.
            first = max(start, len(sequence.prompt_logprobs) - 1)
            last = min(end, sequence.num_prompt_tokens - 1)
            if first < last:
                targets = sequence.token_ids[first + 1 : last + 1]
                self.prompt_rows.append(PromptRows(sequence, targets))
                self.prompts += range(at + first - start, at + last - start)
        if sequence.request.pooling is not None:
            first = end - 1 if sequence.request.pooling == "last" else max(start, sequence.num_pooled)
            if first < end and (item.samples or sequence.request.pooling == "mean"):
                self.pooled.append((sequence, end - first, item.samples))
                self.hidden += range(at + first - start, at + item.num_tokens)
        elif item.samples and not sequence.draws:
            self.read.append(sequence)
        elif item.samples:
            drafts = tuple(sequence.drafts)
            self.rows += [Row(sequence, drafts[:count], len(drafts)) for count in range(len(drafts) + 1)]
            self.samples += range(at + item.num_tokens - len(drafts) - 1, at + item.num_tokens)
