"""Turn logits into the weights to draw from: temperature, top_k, top_p, min_p and typical_p.

The filters follow each other as in transformers, each on what the one before left. They reduce to one cut-off
value per row (tokens that tie with it stay), so that the order of candidates, which a partial sort leaves
open, does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..request import SamplingParams
from .draw import GROUP
from .kernels import Array, as_array, at_least, largest, namespace, on_device, pick, take

# How many of the largest values are looked at: most nuclei are narrower than the first, nearly all than the
# second; only rows whose nucleus is wider still are sorted as a whole.
_CANDIDATES = (64, 4096)


def token_weights(
    logits: torch.Tensor, params: Sequence[SamplingParams], maxima: torch.Tensor | None = None
) -> torch.Tensor:
    """Return `[R, W]` float32: each token's probability up to a factor per row, 0 where it is filtered out.

    W is `vocab_size`, rounded up to a multiple of `GROUP`; what lies beyond the vocabulary has weight 0.

    Args:
        logits: `[R, vocab_size]` float32.
        params: of each row.
        maxima: `[R]`, the largest logit of each row, where it is known already.
    """
    rows, vocab_size = logits.shape
    device = logits.device
    maxima = logits.amax(dim=-1) if maxima is None else maxima
    scaled = logits.new_full((rows, -(-vocab_size // GROUP) * GROUP), -math.inf)
    # From the maximum down: with a tiny temperature the quotient then overflows to -inf only, never to +inf.
    torch.sub(logits, maxima.unsqueeze(1), out=scaled[:, :vocab_size])
    scaled.div_(_column([item.temperature for item in params], device))
    ranked = [row for row, item in enumerate(params) if _has_top_k(item, vocab_size) or item.top_p < 1.0]
    typical = [row for row, item in enumerate(params) if item.typical_p < 1.0]
    if not (ranked or typical or any(item.min_p > 0.0 for item in params)):
        return scaled.exp_()
    weights = scaled.exp()
    if ranked or any(item.min_p > 0.0 for item in params):
        cutoff = _column([math.log(item.min_p) if item.min_p > 0.0 else -math.inf for item in params], device)
        if ranked:
            some = [params[row] for row in ranked]
            edges = _edges(pick(scaled, ranked), pick(weights, ranked), some, vocab_size)
            index = on_device(ranked, device)
            cutoff[index] = torch.maximum(cutoff[index], edges)
        weights.mul_(at_least(scaled, cutoff))
    if typical:
        mass = _column([params[row].typical_p for row in typical], device)
        kept = _typical(as_array(pick(scaled, typical)), as_array(pick(weights, typical)), as_array(mass))
        weights[on_device(typical, device)] = torch.as_tensor(kept)
    return weights


def _has_top_k(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size


def _column(values: list[float], device: torch.device) -> torch.Tensor:
    return on_device(values, device, torch.float32).unsqueeze(1)


def _edges(
    scaled: torch.Tensor, weights: torch.Tensor, params: Sequence[SamplingParams], vocab_size: int
) -> torch.Tensor:
    """Return `[R, 1]`: the smallest value of each row of `scaled` that top_k and top_p keep.

    Whether a nucleus is wider than the values looked at, only they can tell: on a GPU that would have to be
    waited for, which takes longer than sorting the row.
    """
    ks = [item.top_k if _has_top_k(item, vocab_size) else 0 for item in params]
    nucleus = [item.top_p < 1.0 for item in params]
    pairs = [(k, item.top_p) for k, item in zip(ks, params, strict=True)]
    settings = as_array(on_device(pairs, scaled.device, torch.float32))
    totals = as_array(weights).sum(-1, keepdims=True)
    edges = scaled.new_empty(len(params), 1)
    out, total_width = as_array(edges), scaled.shape[1]
    pending = list(range(len(params)))
    for width in (*_CANDIDATES, total_width):
        rows = pending
        if width < total_width:
            rows = [row for row in pending if ks[row] < width and not (nucleus[row] and scaled.is_cuda)]
        if not rows:
            continue
        values = largest(pick(scaled, rows), min(width, total_width))
        index = as_array(on_device(rows, scaled.device))
        out[index], is_open = _edges_among(values, settings[index], totals[index])
        pending = [row for row in pending if row not in set(rows)]
        if width < total_width and any(nucleus[row] for row in rows):
            pending += [row for row, flag in zip(rows, is_open[:, 0].tolist(), strict=True) if flag]
            pending.sort()
        if not pending:
            break
    return edges


def _edges_among(values: Array, settings: Array, totals: Array) -> tuple[Array, Array]:
    """Look for the edges among each row's largest values.

    Args:
        values: `[R, w]`, descending.
        settings: `[R, 2]`, the row's top_k (0: off) and top_p (1: off).
        totals: `[R, 1]`, sum of the row's weights.

    Returns:
        `[R, 1]` edges, and `[R, 1]` bool: whether top_p would have to see more values than these.
    """
    xp = namespace(values)
    k, top_p = xp.asarray(settings[:, :1], dtype=xp.int64), settings[:, 1:]
    kth = xp.where(k > 0, take(values, (k - 1).clip(0, values.shape[1] - 1)), -math.inf)
    in_top_k = values >= kth
    weights = xp.exp(values) * in_top_k
    # In float64: a nucleus may hold most of the vocabulary.
    sums = xp.cumsum(weights, -1, dtype=xp.float64)
    # What top_k keeps is the whole distribution for top_p.
    totals = xp.where(k > 0, sums[:, -1:], totals)
    keep = in_top_k & ((sums - weights < top_p * totals) | (top_p >= 1.0))
    count = keep.sum(-1, keepdims=True).clip(1)
    more = xp.where(k > 0, values[:, -1:] >= kth, count == values.shape[1])
    return take(values, count - 1), more & (top_p < 1.0)


def _typical(scaled: Array, weights: Array, mass: Array) -> Array:
    """Keep the weights of the tokens with a surprise nearest to the entropy (arXiv:2202.00666)."""
    xp = namespace(weights)
    total = weights.sum(-1, keepdims=True)
    probs = weights / total
    # Finite where a weight is 0, so that the product below is 0 there.
    surprise = (xp.log(total) - scaled).clip(max=1e30)
    entropy = (probs * surprise).sum(-1, keepdims=True)
    distance = xp.where(weights > 0, abs(surprise - entropy), math.inf)
    order = xp.argsort(distance)
    sums = xp.cumsum(take(probs, order), -1, dtype=xp.float64)
    last = (sums < mass).sum(-1, keepdims=True).clip(max=order.shape[1] - 1)
    return weights * (distance <= take(distance, take(order, last)))
