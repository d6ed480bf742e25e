"""Propose what followed the last tokens earlier in the same sequence (prompt lookup)."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from ..sequence import Sequence


@dataclass(slots=True)
class _Places:
    """Remember where each n-gram of a sequence ended last, as far as it was read.

    Attributes:
        after: the place after the n-gram's latest occurrence but the one at the very end.
        num_read: n-grams that end before this place are in `after`.
    """

    after: dict[tuple[int, ...], int] = field(default_factory=dict)
    num_read: int = 0


class NgramProposer:
    """Look the last tokens up in the text before them; the longest n-gram that occurs there wins.

    Source: https://github.com/apoorvumang/prompt-lookup-decoding.

    Args:
        min_ngram: tokens of the shortest n-gram that is looked up.
        max_ngram: of the longest one.
    """

    def __init__(self, *, min_ngram: int, max_ngram: int) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)
        self._places: WeakKeyDictionary[Sequence, _Places] = WeakKeyDictionary()

    def propose(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Return proposals, at most as many tokens as wanted for each sequence, for those that have some."""
        found = {sequence: self._look_up(sequence, count) for sequence, count in wanted.items()}
        return {sequence: drafts for sequence, drafts in found.items() if drafts}

    def _look_up(self, sequence: Sequence, count: int) -> list[int]:
        tokens = sequence.token_ids
        places = self._places.setdefault(sequence, _Places())
        # An n-gram is stored when something follows it, so that the last tokens never find themselves.
        for end in range(max(places.num_read, 1), len(tokens)):
            for size in self._sizes:
                if size <= end:
                    places.after[tuple(tokens[end - size : end])] = end
        places.num_read = len(tokens)
        for size in self._sizes:
            start = places.after.get(tuple(tokens[-size:])) if size < len(tokens) else None
            if start is not None:
                return tokens[start : start + count]
        return []
