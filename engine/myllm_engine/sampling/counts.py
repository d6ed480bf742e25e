"""Count a sequence's tokens as it grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TokenCounts:
    """Hold the distinct tokens of one sequence and how often each occurs in its completion.

    Every token is looked at once, when it is new. What was counted is a prefix of the sequence's tokens,
    which only ever grow; drafts are added on the way out and leave no trace.

    Args:
        num_prompt_tokens: the completion begins here.
        with_prompt: whether tokens that occur in the prompt only are held as well.
    """

    def __init__(self, num_prompt_tokens: int, *, with_prompt: bool) -> None:
        self._num_prompt_tokens = num_prompt_tokens
        self._num_tokens = 0 if with_prompt else num_prompt_tokens
        self._place: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.empty(64, dtype=np.float32)

    def after(self, token_ids: Sequence[int], drafts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the distinct tokens of `token_ids` and `drafts`, and how often the completion holds each.

        Args:
            token_ids: the whole sequence; it begins with what was handed in before.
            drafts: what is assumed to follow it.

        Returns:
            `[n]` int64 and `[n]` float32; valid until the next call.
        """
        for place in range(self._num_tokens, len(token_ids)):
            self._add(token_ids[place], 1.0 if place >= self._num_prompt_tokens else 0.0)
        self._num_tokens = len(token_ids)
        size = len(self._place)
        if not drafts:
            return self._ids[:size], self._counts[:size]
        counts = self._counts[:size].copy()
        more: dict[int, int] = {}
        for token_id in drafts:
            place = self._place.get(token_id)
            if place is None:
                more[token_id] = more.get(token_id, 0) + 1
            else:
                counts[place] += 1.0
        ids = np.concatenate([self._ids[:size], np.fromiter(more, np.int64, len(more))])
        return ids, np.concatenate([counts, np.fromiter(more.values(), np.float32, len(more))])

    def _add(self, token_id: int, count: float) -> None:
        place = self._place.get(token_id)
        if place is not None:
            self._counts[place] += count
            return
        place = len(self._place)
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.empty_like(self._counts)])
        self._place[token_id] = place
        self._ids[place], self._counts[place] = token_id, count
