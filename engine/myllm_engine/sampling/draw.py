"""Draw tokens from weights.

Tokens race: each starts with its probability as its rate, and the first to arrive wins, so that the winner
has that very distribution (the Gumbel-max method in other words). The first arrival of a group of tokens is
that of one runner with the sum of their rates, and which of them it was does not depend on the time: so
groups race first, then the tokens of the winner. That needs a random number per group and per token of one
group instead of one per token of the vocabulary.

Each runner has a number of its own. A change in the logits' last bits therefore changes a draw only where two
groups, or two tokens, are that close, much as in greedy decoding.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from .kernels import Array, as_array, on_device, take, to_int32
from .noise import exponential_noise

# Tokens in a group. Rows of weights are padded to a multiple of it.
GROUP = 64


def draw(weights: torch.Tensor, keys: np.ndarray) -> torch.Tensor:
    """Return `[R]` int64: an index per row of `weights`, drawn with its weight's share as the probability.

    Args:
        weights: `[R, W]` float32, 0 or more, W a multiple of `GROUP`; every row has a weight above 0.
        keys: from `noise_keys`.
    """
    rows, width = weights.shape
    groups = width // GROUP
    names, members = _runners(width, weights.device)
    array = as_array(weights)
    noise_keys = as_array(on_device(keys, weights.device))
    # Group g holds the indices that leave the remainder g. Added by halves, because the order of such a sum
    # does not depend on the number of rows.
    rates = array.reshape(rows, GROUP, groups)
    while rates.shape[1] > 1:
        half = rates.shape[1] // 2
        rates = rates[:, :half] + rates[:, half:]
    first = (rates[:, 0] / exponential_noise(noise_keys, names)).argmax(-1)
    ids = members + first[:, None]
    winner = (take(array, ids) / exponential_noise(noise_keys, to_int32(ids))).argmax(-1)
    return torch.as_tensor(winner * groups + first)


@functools.lru_cache(maxsize=16)
def _runners(width: int, device: torch.device) -> tuple[Array, Array]:
    """Return the ids of the groups, which no token has, and of the members of the first group."""
    groups = width // GROUP
    names = torch.arange(-groups, 0, dtype=torch.int32, device=device)
    return as_array(names), as_array(torch.arange(0, width, groups, device=device))
