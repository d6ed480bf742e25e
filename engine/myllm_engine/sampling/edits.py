"""Change logits before a token is chosen: watermark, penalties, bias, and what is not allowed.

All of it but masks over the whole vocabulary are edits of single places in `[R, vocab_size]`, gathered over
the rows and done together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from .counts import TokenCounts
from .kernels import on_device
from .watermark import DELTA, green_list

if TYPE_CHECKING:
    from ..sequence import Row
    from ..sequence import Sequence as TokenSequence


class LogitEdits:
    """Hold what one sequence's parameters change, in the form in which it is needed at every step.

    Args:
        sequence: whose logits they are.
        eos_token_ids: tokens that end a completion.
    """

    def __init__(self, sequence: TokenSequence, eos_token_ids: frozenset[int]) -> None:
        params = sequence.params
        self.repetition = params.repetition_penalty
        self.frequency = params.frequency_penalty
        self.presence = params.presence_penalty
        self.counts: TokenCounts | None = None
        if self.repetition != 1.0 or self.frequency or self.presence:
            self.counts = TokenCounts(sequence.num_prompt_tokens, with_prompt=self.repetition != 1.0)
        self.bias_ids = np.fromiter(params.logit_bias, dtype=np.int64)
        self.bias = np.fromiter(params.logit_bias.values(), dtype=np.float32)
        self.allowed_ids = np.unique(np.array(params.allowed_token_ids, dtype=np.int64))
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else eos_token_ids)
        self.end_ids = np.array(sorted(ends), dtype=np.int64)
        self.min_tokens = params.min_tokens if ends else 0
        self.bad_words = sequence.bad_words
        self.watermark = params.watermark
        self._always = bool(
            self.counts is not None
            or self.bias_ids.size
            or self.allowed_ids.size
            or self.bad_words is not None
            or self.watermark
        )

    def needed(self, row: Row) -> bool:
        """Tell whether they change anything in a row of this sequence."""
        return self._always or row.num_output_tokens < self.min_tokens


def edits_of(sequence: TokenSequence, eos_token_ids: frozenset[int]) -> LogitEdits:
    """Return a sequence's edits, made when they are first asked for."""
    if sequence.edits is None:
        sequence.edits = LogitEdits(sequence, eos_token_ids)
    return sequence.edits


def edit_logits(
    logits: torch.Tensor,
    rows: Sequence[Row],
    allowed: Sequence[np.ndarray | Exception | None],
    *,
    eos_token_ids: frozenset[int],
) -> torch.Tensor:
    """Return `[R, vocab_size]` float32: the logits with all that the requests add, subtract and forbid.

    The arguments are those of `sampler.sample`, whose logits are left as they are.
    """
    work = logits.to(torch.float32, copy=True)
    edits = [edits_of(row.sequence, eos_token_ids) for row in rows]
    _mark(work, rows, edits)
    _penalise(work, rows, edits)
    biased = [index for index, item in enumerate(edits) if item.bias_ids.size]
    if biased:
        places = _places(work, biased, [edits[index].bias_ids for index in biased])
        bias = np.concatenate([edits[index].bias for index in biased])
        work.view(-1).index_add_(0, places, on_device(bias, work.device))
    _mask(work, allowed)
    _restrict(work, edits)
    _ban_words(work, rows, edits)
    _ban_ends(work, rows, edits)
    return work


def _mask(work: torch.Tensor, allowed: Sequence[np.ndarray | Exception | None]) -> None:
    """Leave nothing but what the constraints allow."""
    masked = [index for index, mask in enumerate(allowed) if isinstance(mask, np.ndarray)]
    if not masked:
        return
    if work.device.type == "cpu":
        # Row by row and by the smaller side: several times faster than a fill under a mask.
        for index in masked:
            _mask_row(work[index].numpy(), allowed[index])
        return
    mask = on_device(np.stack([allowed[index] for index in masked]), work.device)
    # 1 becomes 0 and 0 infinity.
    work[on_device(masked, work.device)] -= mask.to(torch.float32).reciprocal_().sub_(1.0)


def _mask_row(row: np.ndarray, mask: np.ndarray) -> None:
    if 2 * np.count_nonzero(mask) > len(mask):
        np.copyto(row, -np.inf, where=~mask)
        return
    kept = np.flatnonzero(mask)
    values = row[kept]
    row.fill(-np.inf)
    row[kept] = values


def _places(work: torch.Tensor, rows: Sequence[int], ids: Sequence[np.ndarray]) -> torch.Tensor:
    """Return the flat indices of the given ids in the given rows."""
    width = work.shape[1]
    places = [row * width + items for row, items in zip(rows, ids, strict=True)]
    return on_device(np.concatenate(places), work.device)


def _mark(work: torch.Tensor, rows: Sequence[Row], edits: Sequence[LogitEdits]) -> None:
    """Make the green tokens of watermarked rows likelier."""
    for index, (row, item) in enumerate(zip(rows, edits, strict=True)):
        if item.watermark:
            previous = row.drafts[-1] if row.drafts else row.sequence.token_ids[-1]
            work[index, green_list(previous, work.shape[1]).to(work.device)] += DELTA


def _penalise(work: torch.Tensor, rows: Sequence[Row], edits: Sequence[LogitEdits]) -> None:
    """Apply the repetition penalty, then those of frequency and presence."""
    penalised = [index for index, item in enumerate(edits) if item.counts is not None]
    if not penalised:
        return
    found = [
        edits[index].counts.after(rows[index].sequence.token_ids, rows[index].drafts) for index in penalised
    ]
    sizes = [len(ids) for ids, _ in found]
    places = _places(work, penalised, [ids for ids, _ in found])
    penalties = [
        [edits[index].repetition, edits[index].frequency, edits[index].presence] for index in penalised
    ]
    table = np.repeat(np.array(penalties, dtype=np.float32), sizes, axis=0).T
    table = np.concatenate([table, [np.concatenate([counts for _, counts in found])]])
    repetition, frequency, presence, count = on_device(table.astype(np.float32), work.device)
    flat = work.view(-1)
    values = flat[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    flat[places] = values - (frequency * count + presence * (count > 0))


def _restrict(work: torch.Tensor, edits: Sequence[LogitEdits]) -> None:
    """Leave nothing but `allowed_token_ids`, where there are any."""
    restricted = [index for index, item in enumerate(edits) if item.allowed_ids.size]
    if restricted:
        places = _places(work, restricted, [edits[index].allowed_ids for index in restricted])
        kept = work.view(-1)[places]
        work[on_device(restricted, work.device)] = -math.inf
        work.view(-1)[places] = kept


def _ban_words(work: torch.Tensor, rows: Sequence[Row], edits: Sequence[LogitEdits]) -> None:
    """Forbid the tokens that would complete one of `bad_words`."""
    width = work.shape[1]
    banned = [
        index * width + token_id
        for index, (row, item) in enumerate(zip(rows, edits, strict=True))
        if item.bad_words is not None
        for token_id in item.bad_words.banned(
            row.sequence.token_ids, row.sequence.num_prompt_tokens, row.drafts
        )
    ]
    if banned:
        work.view(-1)[on_device(banned, work.device)] = -math.inf


def _ban_ends(work: torch.Tensor, rows: Sequence[Row], edits: Sequence[LogitEdits]) -> None:
    """Forbid what would end a completion before `min_tokens`, unless nothing else is left."""
    early = [
        index
        for index, (row, item) in enumerate(zip(rows, edits, strict=True))
        if row.num_output_tokens < item.min_tokens
    ]
    if not early:
        return
    flat = work.view(-1)
    ends = [edits[index].end_ids for index in early]
    places = _places(work, early, ends)
    before = flat[places]
    flat[places] = -math.inf
    left = work[on_device(early, work.device)].amax(dim=-1)
    owner = on_device(np.repeat(np.arange(len(early)), [len(ids) for ids in ends]), work.device)
    flat[places] = torch.where(left[owner] == -math.inf, before, -math.inf)
