"""Say for each row of logits which tokens its grammar allows."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConstraintError
from .matcher import Matcher, unpack, words

if TYPE_CHECKING:
    from llguidance import LLExecutor

    from ..sequence import Row

Allowed = np.ndarray | ConstraintError | None


def allowed_tokens(rows: Sequence[Row]) -> list[Allowed]:
    """Return for each row which tokens its constraint allows, `[vocab_size]` bool, or None without one.

    llguidance fills the masks in threads of its own, without Python's lock. A constraint that cannot be
    followed any further gives its error.

    Args:
        rows: of each sequence, the rows stand in order and their drafts are the beginnings of its last row's.
            Once a draft is not what the grammar allows, the rows after it may hold anything.
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

    # All of a few cores: the forward pass of the step is over on a CPU, and elsewhere on a GPU.
    return LLExecutor(min(8, os.cpu_count() or 1))
