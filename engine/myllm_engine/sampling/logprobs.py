"""Report log-probabilities under the model's unmodified distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ..request import TokenLogprob
from .kernels import HostCopy, at_least, on_device, pick, top_k

# Rows looked at together: what is computed of them takes several times their own memory.
_ROWS = 64


class TokenLogprobs:
    """Find the log-probability of a token per row, with its rank and the most likely tokens.

    They are reckoned at once, in float32, and read when they are there.

    Args:
        logits: `[R, vocab_size]`, any float dtype.
        token_ids: `[R]` int64.
        counts: how many of the most likely tokens each row wants; None: the row wants nothing.
        chosen: tokens that a row wants in their place, by row.
    """

    def __init__(
        self,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        counts: Sequence[int | None],
        chosen: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self._counts = counts
        self._chosen = chosen or {}
        wanted = [row for row, count in enumerate(counts) if count is not None]
        self._parts: list[tuple[list[int], HostCopy]] = []
        for start in range(0, len(wanted), _ROWS):
            rows = wanted[start : start + _ROWS]
            most = max(counts[row] or 0 for row in rows)
            wishes = [self._chosen.get(row, ()) for row in rows] if self._chosen else []
            self._parts.append((rows, _reckon(pick(logits, rows), pick(token_ids, rows), most, wishes)))

    def result(self) -> list[TokenLogprob | None]:
        """Wait for them; return an item per row, None where nothing was wanted."""
        result: list[TokenLogprob | None] = [None] * len(self._counts)
        for rows, copy in self._parts:
            for row, token_id, logprob, rank, ids, values, *wished in zip(rows, *copy.lists(), strict=True):
                count = self._counts[row]
                top = tuple(zip(ids[:count], values[:count], strict=True))
                if chosen := self._chosen.get(row):
                    pairs = zip(chosen, wished[0][: len(chosen)], strict=True)
                    top = tuple(sorted(pairs, key=lambda pair: -pair[1]))
                result[row] = TokenLogprob(token_id, logprob, rank, top)
        return result


def prompt_logprobs(logits: torch.Tensor, target_ids: Sequence[int], count: int) -> list[TokenLogprob]:
    """Return the log-probabilities of prompt tokens.

    Args:
        logits: `[R, vocab_size]`, of the places before the tokens: of tokens i to i + R - 1.
        target_ids: the `R` tokens that follow: i + 1 to i + R.
        count: how many of the most likely tokens to name for each.
    """
    targets = on_device(target_ids, logits.device, torch.int64)
    items = TokenLogprobs(logits, targets, [count] * len(target_ids)).result()
    return [item for item in items if item is not None]


def _reckon(
    logits: torch.Tensor, token_ids: torch.Tensor, most: int, wishes: Sequence[Sequence[int]]
) -> HostCopy:
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(1, token_ids.unsqueeze(1))
    # A sum of floats counts exactly up to 2**24.
    not_above = at_least(chosen, logprobs).sum(dim=-1)
    ranks = (logprobs.shape[1] - not_above + 1).long()
    top_values, top_ids = top_k(logprobs, min(most, logprobs.shape[1]))
    parts = [token_ids, chosen.flatten(), ranks, top_ids, top_values]
    if wishes:
        width = max(map(len, wishes))
        padded = [token_id for wish in wishes for token_id in (*wish, *[0] * (width - len(wish)))]
        index = on_device(padded, logits.device, torch.int64).view(len(wishes), width)
        parts.append(logprobs.gather(1, index))
    return HostCopy(*parts)
