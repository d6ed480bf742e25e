"""Say for each row of logits which tokens its grammar allows, while the model computes the logits."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import ConstraintError
from .matcher import Matcher, unpack, words

if TYPE_CHECKING:
    from llguidance import LLExecutor

    from ..sequence import Row

Allowed = np.ndarray | ConstraintError | None


class MaskFiller:
    """Fill masks in a thread of their own; llguidance's work needs neither this one nor Python's lock.

    `start` it with the rows of a step before the forward is launched, and take the `result` after it. No
    matcher of these rows may be touched in between.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fill-masks")
        self._finalizer = weakref.finalize(self, self._thread.shutdown, wait=False)

    def start(self, rows: Sequence[Row]) -> PendingMasks:
        """Begin to fill the masks of the rows that have a constraint.

        Args:
            rows: of each sequence, the rows stand in order and their drafts are the beginnings of its last
                row's. Once a draft is not what the grammar allows, the rows after it may hold anything.
        """
        if not any(row.sequence.matcher is not None for row in rows):
            return PendingMasks(len(rows), None)
        return PendingMasks(len(rows), self._thread.submit(allowed_tokens, rows))


class PendingMasks:
    """Hold masks that are being filled."""

    def __init__(self, num_rows: int, future: Future[list[Allowed]] | None) -> None:
        self._num_rows = num_rows
        self._future = future

    def result(self) -> list[Allowed]:
        """Wait for them; see `allowed_tokens`."""
        return [None] * self._num_rows if self._future is None else self._future.result()


def allowed_tokens(rows: Sequence[Row]) -> list[Allowed]:
    """Return for each row which tokens its constraint allows, `[vocab_size]` bool, or None without one.

    A constraint that cannot be followed any further gives its error. See `MaskFiller.start` for the rows.
    """
    result: list[Allowed] = [None] * len(rows)
    chains = _chains(rows)
    if not chains:
        return result
    vocab_size = chains[0].matcher.vocab_size
    # All allowed, where a draft that is not ends the work early.
    bits = np.full((sum(chain.length for chain in chains), words(vocab_size)), -1, dtype=np.int32)
    _fill(chains, bits)
    masks = unpack(bits, vocab_size)
    slot = 0
    for chain in chains:
        along: Sequence[Allowed] = masks[slot : slot + chain.length]
        slot += chain.length
        if chain.matcher.raw.is_error():
            chain.matcher.restore()
            along = _one_by_one(chain)
        for index in chain.indices:
            result[index] = along[len(rows[index].drafts)]
    return result


def forbid(logits: torch.Tensor, allowed: np.ndarray) -> None:
    """Set the logits of all but the allowed tokens to -inf, in place.

    On a CPU this takes about 20 µs for 49,152 tokens, where `masked_fill_` takes 100.

    Args:
        logits: `[vocab_size]`, float32.
        allowed: `[vocab_size]` bool.
    """
    if logits.device.type != "cpu":
        logits.masked_fill_(torch.from_numpy(~allowed).to(logits.device), float("-inf"))
        return
    row = logits.numpy()
    if 2 * np.count_nonzero(allowed) > len(allowed):
        np.copyto(row, -np.inf, where=~allowed)
    else:
        kept = np.flatnonzero(allowed)
        values = row[kept]
        row.fill(-np.inf)
        row[kept] = values


@dataclass(slots=True)
class _Chain:
    """Hold the rows of one sequence: the place after its text, and the places along its drafts."""

    matcher: Matcher
    indices: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return 1 + len(self.drafts)


def _chains(rows: Sequence[Row]) -> list[_Chain]:
    by_matcher: dict[int, _Chain] = {}
    for index, row in enumerate(rows):
        matcher = row.sequence.matcher
        if matcher is not None:
            chain = by_matcher.setdefault(id(matcher), _Chain(matcher))
            chain.indices.append(index)
            chain.drafts = list(row.drafts)
    return list(by_matcher.values())


def _fill(chains: Sequence[_Chain], bits: np.ndarray) -> None:
    """Fill a row of `bits` for each place, without Python's lock."""
    plain, drafted, slot = [], [], 0
    for chain in chains:
        if chain.drafts:
            drafted.append((chain.matcher.raw, slot, chain.drafts))
        else:
            plain.append((chain.matcher.raw, slot))
        slot += chain.length
    where = (bits.ctypes.data, bits.strides[0], len(bits))
    if plain:
        _executor().unsafe_compute_mask_ptr(plain, *where)
    if drafted:
        _executor().unsafe_compute_mask_ptr_with_draft_token(drafted, *where)


def _one_by_one(chain: _Chain) -> list[Allowed]:
    """Return a chain's masks where a limit was hit: the error belongs to one place, and not those before."""
    masks: list[Allowed] = []
    matcher = chain.matcher
    for draft in [*chain.drafts, None]:
        try:
            masks.append(matcher.allowed())
        except ConstraintError as error:
            masks.append(error)
            break
        if draft is None or matcher.raw.try_consume_tokens([draft]) == 0:
            break
    failed_later = len(masks) > 1
    masks += [masks[-1]] * (chain.length - len(masks))
    if failed_later:
        matcher.restore()
    return masks


@functools.cache
def _executor() -> LLExecutor:
    from llguidance import LLExecutor

    # The model's own threads want the cores.
    return LLExecutor(max(1, min(8, (os.cpu_count() or 1) // 4)))
