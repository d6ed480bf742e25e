"""Search for the most likely completions of one prompt with several beams.

Everything about it is as in `transformers.generate(num_beams=…, do_sample=False)`: which candidates are
looked at, which of them may finish, the scores in float32, and when the search ends. Only where transformers
would go on with finished beams, for want of others, are there fewer beams here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .kernels import top_k


@dataclass(frozen=True, slots=True)
class Extension:
    """Name one way to go on: a beam of the step before and the token that follows it."""

    parent: int
    token_id: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Hold one finished completion.

    Attributes:
        token_ids: the completion, with the token that ended it.
        beams: for each token the row of `log_probs` that it was taken from, at that step.
        score: sum of log-probabilities over `len(token_ids) ** length_penalty`.
        finish_reason: "stop" (an end token, or `ends` said so) or "length".
    """

    token_ids: tuple[int, ...]
    beams: tuple[int, ...]
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class _Beam:
    """One token of the tree of beams, with the way back to the root."""

    token_id: int
    row: int
    before: _Beam | None


class BeamSearch:
    """Decide step by step which beams go on and which have finished. Knows neither model nor text.

    Args:
        width: beams, and hypotheses to return at most.
        max_tokens: longest completion.
        end_token_ids: tokens that end a completion: EOS (unless ignored) and `stop_token_ids`.
        length_penalty: exponent of the length in a score.
        early_stopping: True: end as soon as `width` hypotheses are there; False: when no running beam is
            likely to become better than the worst of them; "never": when none can.

    Attributes:
        done: whether the search has ended; then `step` must not be called any more.
        num_live: rows that the next `step` takes: 1 at first.
    """

    def __init__(
        self,
        width: int,
        *,
        max_tokens: int,
        end_token_ids: frozenset[int],
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
    ) -> None:
        self._width = width
        self._max_tokens = max_tokens
        self._end_token_ids = end_token_ids
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        # So many that `width` of them go on even if every beam could end with each end token.
        self._num_candidates = max(2, 1 + len(end_token_ids)) * width
        self._live: list[_Beam | None] = [None]
        self._scores = np.zeros(1, dtype=np.float32)
        self._finished: list[Hypothesis] = []
        self._length = 0
        self.done = False

    @property
    def num_live(self) -> int:
        """Return how many rows the next step takes."""
        return len(self._live)

    def step(
        self, log_probs: torch.Tensor, ends: Callable[[Extension], bool] = lambda _: False
    ) -> list[Extension]:
        """Choose what the beams go on with.

        Args:
            log_probs: `[num_live, vocab_size]` float32, of the token after each beam, in the order of the
                list returned last (at first: one row, after the prompt); -inf where a token is not allowed.
            ends: tells of a candidate whether it is complete for a reason other than its last token, such as
                a stop string; asked only where that is open.

        Returns:
            The beams that go on, at most `width`, the best first; row i of the next step is beam i. Empty
            when the search is done.
        """
        candidates = self._best(log_probs)
        self._length += 1
        out_of_room = self._length >= self._max_tokens
        stopped = [
            item.token_id in self._end_token_ids or ends(Extension(item.row, item.token_id))
            for item, _ in candidates
        ]
        for (item, score), is_stop in list(zip(candidates, stopped, strict=True))[: self._width]:
            if is_stop or out_of_room:
                self._finish(item, score, "stop" if is_stop else "length")
        going = []
        if not out_of_room:
            going = [item for item, is_stop in zip(candidates, stopped, strict=True) if not is_stop]
        going = going[: self._width]
        self._live = [item for item, _ in going]
        self._scores = np.array([score for _, score in going], dtype=np.float32)
        self.done = not going or self._is_settled()
        return [] if self.done else [Extension(item.row, item.token_id) for item, _ in going]

    def hypotheses(self) -> list[Hypothesis]:
        """Return what has finished, the best first; `width` of them when done, unless candidates lacked."""
        return list(self._finished)

    def _best(self, log_probs: torch.Tensor) -> list[tuple[_Beam, np.float32]]:
        """Return the best candidates of all beams, descending."""
        size = min(self._num_candidates, log_probs.shape[1])
        # The best of all are among the best of each beam.
        values, token_ids = top_k(log_probs, size)
        values = values + torch.from_numpy(self._scores).to(values.device).unsqueeze(1)
        best = values.flatten().topk(min(self._num_candidates, values.numel()))
        scores, places = best.values.cpu().numpy(), best.indices.cpu().numpy()
        tokens = token_ids.flatten()[best.indices].tolist()
        return [
            (_Beam(token_id, int(place) // size, self._live[int(place) // size]), score)
            for score, place, token_id in zip(scores, places, tokens, strict=True)
            if score > -np.inf
        ]

    def _finish(self, beam: _Beam, score: np.float32, reason: Literal["stop", "length"]) -> None:
        token_ids, beams, place = [], [], beam
        while place is not None:
            token_ids.append(place.token_id)
            beams.append(place.row)
            place = place.before
        final = float(score / np.float32(self._length**self._length_penalty))
        self._finished.append(Hypothesis(tuple(token_ids[::-1]), tuple(beams[::-1]), final, reason))
        # Stable: of equals the earlier one stays.
        self._finished.sort(key=lambda item: -item.score)
        del self._finished[self._width :]

    def _is_settled(self) -> bool:
        """Tell whether the running beams cannot, or are not likely to, better what has finished."""
        if len(self._finished) < self._width:
            return False
        if self._early_stopping is True:
            return True
        length = self._length
        if self._early_stopping == "never" and self._length_penalty > 0.0:
            length = self._max_tokens
        return (
            not float(self._scores[0] / np.float32(length**self._length_penalty)) > self._finished[-1].score
        )
