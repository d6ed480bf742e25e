"""Choose the next token of each sequence from its row of logits.

Every draw takes one random number per token of the vocabulary, which depends on nothing but the sequence's
seed, the token's position and the token's id. Given equal logits, a seeded request therefore gives the same
tokens alone, in any batch and after a preemption. Logits themselves differ in their last bits from batch to
batch (the order of sums changes with its size, most so in bfloat16). As each token has a number of its own,
that changes a draw only where the winner and another token, or a token and a filter's edge, are that close,
much as in greedy decoding.

Filters reduce to one cut-off value per row (tokens that tie with it stay), so that the order of candidates,
which a partial sort leaves open, does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from .errors import ConstraintError, EngineError, GenerationError
from .request import SamplingParams, TokenLogprob
from .sequence import Row

# Most nuclei are narrower than this many tokens; only rows whose nucleus is wider pay for looking at more.
_FIRST_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class SampledToken:
    """Hold a drawn token, and its log-probability when the request asked for it."""

    token_id: int
    logprob: TokenLogprob | None = None


class DrawnTokens:
    """Tokens that were drawn on the device, and may not have arrived.

    Attributes:
        token_ids: `[R]` int64 on the device.
    """

    def __init__(self, token_ids: torch.Tensor, results: list[SampledToken | EngineError]) -> None:
        self.token_ids = token_ids
        self._results = results

    def result(self) -> list[SampledToken | EngineError]:
        return self._results


def draw_tokens(
    logits: torch.Tensor,
    rows: SequenceOf[Row],
    allowed: SequenceOf[np.ndarray | ConstraintError | None],
    *,
    eos_token_ids: frozenset[int],
) -> DrawnTokens:
    results = sample(logits, rows, allowed, eos_token_ids=eos_token_ids)
    ids = [item.token_id if isinstance(item, SampledToken) else 0 for item in results]
    return DrawnTokens(torch.tensor(ids, device=logits.device), results)


def sample(
    logits: torch.Tensor,
    rows: SequenceOf[Row],
    allowed: SequenceOf[np.ndarray | ConstraintError | None],
    *,
    eos_token_ids: frozenset[int],
) -> list[SampledToken | EngineError]:
    """Draw one token per row of `logits` `[R, vocab_size]`, under the parameters of the row's sequence.

    Args:
        logits: what the model says of each row.
        rows: the places they belong to.
        allowed: what each row's constraint allows, from `structured.allowed_tokens`.
        eos_token_ids: tokens that end a completion.

    Returns:
        A token per row. One from which nothing can be drawn gives the error that ends its request:
        ConstraintError when its constraint fails, GenerationError when its largest logit is infinite or NaN.
    """
    all_params = [row.sequence.params for row in rows]
    errors: dict[int, EngineError] = {
        index: item for index, item in enumerate(allowed) if isinstance(item, ConstraintError)
    }
    work = logits
    if any(_is_processed(row) for row in rows):
        work = logits.to(torch.float32, copy=True)
        for index, (row, mask) in enumerate(zip(rows, allowed, strict=True)):
            if index not in errors and _is_processed(row):
                process_logits(work[index], row, mask, eos_token_ids=eos_token_ids)
    # NaN is the maximum of a row that holds one.
    largest, token_ids = work.max(dim=-1)
    for index, finite in enumerate(largest.isfinite().tolist()):
        if not finite and index not in errors:
            errors[index] = GenerationError(
                "The model's logits hold no finite maximum, so no token can be drawn: with float16 weights "
                "try `dtype` bfloat16 or float32"
            )
    drawn = [row for row, params in enumerate(all_params) if not params.greedy and row not in errors]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        filtered = filter_logits(work[index].float(), [all_params[row] for row in drawn])
        keys = noise_keys([rows[row].sequence.seed for row in drawn], [rows[row].position for row in drawn])
        token_ids[index] = draw(filtered, keys)
    logprobs = _logprobs(logits, token_ids, all_params)
    return [
        errors.get(row) or SampledToken(token_id, logprob)
        for row, (token_id, logprob) in enumerate(zip(token_ids.tolist(), logprobs, strict=True))
    ]


def noise_keys(seeds: SequenceOf[int], positions: SequenceOf[int]) -> torch.Tensor:
    """Return `[R, 2]` int32 on the CPU: 64 random bits per (seed, position).

    The generator is SplitMix64 (Steele, Lea, Flood 2014), a counter run through a mixing function: position
    is the counter, the mixed seed its start.
    """
    start = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64) + _GOLDEN)
    state = _mix(start + _GOLDEN * (np.array(positions, dtype=np.uint64) + np.uint64(1)))
    return torch.from_numpy(state.view(np.int32).reshape(-1, 2))


_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def derive_seed(seed: int, number: int) -> int:
    """Return a seed for the `number`-th request that brought none."""
    start = _mix(np.array([seed & _MASK], dtype=np.uint64) + _GOLDEN)
    return int(_mix(start + _GOLDEN * np.array([number + 1], dtype=np.uint64))[0])


def _is_processed(row: Row) -> bool:
    params = row.sequence.params
    return bool(
        params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
        or params.logit_bias
        or row.num_output_tokens < params.min_tokens
        or row.sequence.matcher is not None
    )


def process_logits(
    logits: torch.Tensor, row: Row, allowed: np.ndarray | None, *, eos_token_ids: frozenset[int]
) -> None:
    """Apply penalties, bias, the grammar and `min_tokens` to one float32 row of logits, in place."""
    params, device = row.sequence.params, logits.device
    token_ids = [*row.sequence.token_ids, *row.drafts]
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(token_ids, device=device).unique()
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty or params.presence_penalty:
        output = token_ids[row.sequence.num_prompt_tokens :]
        seen, counts = torch.tensor(output, dtype=torch.int64, device=device).unique(return_counts=True)
        logits[seen] -= params.frequency_penalty * counts + params.presence_penalty
    if params.logit_bias:
        logits[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()), device=device)
    if allowed is not None:
        logits.masked_fill_(torch.from_numpy(~allowed).to(device), float("-inf"))
    if row.num_output_tokens < params.min_tokens:
        banned = sorted(set(params.stop_token_ids) | (set() if params.ignore_eos else eos_token_ids))
        before = logits[banned]
        logits[banned] = float("-inf")
        if logits.max() == float("-inf"):  # the grammar allows nothing else
            logits[banned] = before


def filter_logits(logits: torch.Tensor, params: SequenceOf[SamplingParams]) -> torch.Tensor:
    """Scale float32 logits `[R, vocab_size]` by temperature and set the filtered-out ones to -inf.

    The filters follow each other as in transformers: top_k, top_p, min_p, typical_p, each on what the one
    before left.
    """
    device = logits.device
    temperature = torch.tensor([item.temperature for item in params], device=device)
    # From the maximum down: with a tiny temperature the quotient then overflows to -inf only, never to +inf.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature.unsqueeze(1)
    cut = [row for row, item in enumerate(params) if item.top_k > 0 or item.top_p < 1.0 or item.min_p > 0.0]
    if cut:
        cutoff = torch.full((len(params), 1), float("-inf"), device=device)
        index = torch.tensor(cut, device=device)
        cutoff[index] = _cutoffs(logits[index], [params[row] for row in cut])
        logits = logits.masked_fill(logits < cutoff, float("-inf"))
    for row, item in enumerate(params):
        if item.typical_p < 1.0:
            logits[row] = _typical(logits[row], item.typical_p)
    return logits


def _cutoffs(
    logits: torch.Tensor, params: SequenceOf[SamplingParams], first: int = _FIRST_CANDIDATES
) -> torch.Tensor:
    """Return `[R, 1]`: the smallest logit of each row that top_k, top_p and min_p keep."""
    vocab_size, device = logits.shape[1], logits.device
    top_k = [item.top_k if 0 < item.top_k < vocab_size else vocab_size for item in params]
    narrow = [min(first, vocab_size) if k == vocab_size else k for k in top_k]
    values = logits.topk(max(narrow), dim=-1).values
    limit = torch.tensor(top_k, device=device).unsqueeze(1)
    in_top_k = torch.arange(values.shape[1], device=device) < limit
    # Where top_k is on, what it keeps is the whole distribution for the filters that follow.
    norm = values.masked_fill(~in_top_k, float("-inf")).logsumexp(dim=-1, keepdim=True)
    norm = torch.where(limit < vocab_size, norm, logits.logsumexp(dim=-1, keepdim=True))
    probs = (values - norm).exp()
    top_p = torch.tensor([item.top_p for item in params], device=device).unsqueeze(1)
    min_p = torch.tensor([item.min_p for item in params], device=device).unsqueeze(1)
    before = probs.cumsum(dim=-1) - probs
    keep = in_top_k & ((before < top_p) | (top_p >= 1.0)) & (probs >= min_p * probs[:, :1])
    keep[:, 0] = True
    count = keep.sum(dim=-1, keepdim=True)
    cutoff = values.gather(1, count - 1)
    if values.shape[1] < vocab_size:
        # Every candidate of a row without top_k was kept: what comes after them may belong in as well.
        open_rows = [
            row
            for row, kept in enumerate(count.flatten().tolist())
            if kept == values.shape[1] and top_k[row] == vocab_size
        ]
        if open_rows:
            index = torch.tensor(open_rows, device=device)
            cutoff[index] = _cutoffs(logits[index], [params[row] for row in open_rows], 8 * first)
    return cutoff


def _typical(logits: torch.Tensor, mass: float) -> torch.Tensor:
    """Keep tokens whose surprise is nearest to the entropy, up to `mass`, in one row (arXiv:2202.00666)."""
    logprobs = torch.log_softmax(logits, dim=-1)
    entropy = -(logprobs.exp() * logprobs).nansum()
    distance = (-logprobs - entropy).abs()
    order = distance.argsort(stable=True)
    last = int((logprobs[order].exp().cumsum(0) < mass).sum().clamp(max=len(order) - 1))
    return logits.masked_fill(distance > distance[order[last]], float("-inf"))


def draw(logits: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return `[R]` token ids, drawn from the softmax of each row of `logits` `[R, vocab_size]`.

    Each token starts in a race with its probability as its rate, and the first to arrive wins; so the
    winner has that very distribution (it is the Gumbel-max method in other words).

    Args:
        logits: float32; every row has a finite maximum.
        keys: from `noise_keys`.
    """
    noise = exponential_noise(keys.to(logits.device), logits.shape[1])
    return torch.softmax(logits, dim=-1).div_(noise).argmax(dim=-1)


def exponential_noise(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return `[R, vocab_size]` float32, exponentially distributed, one per key and token id; none is 0."""
    tokens = torch.arange(vocab_size, dtype=torch.int32, device=keys.device)
    bits = _mix32(tokens * -1640531527) ^ keys[:, :1]
    # 31 bits, from which float32 keeps the smallest numbers, which decide who wins, exactly.
    numbers = _mix32(bits, keys[:, 1:]).bitwise_and_(0x7FFFFFFF).to(torch.float32).add_(0.5)
    # Scaled to (0, 1): 1 would give infinity, and a row with one candidate only must still choose it.
    return numbers.mul_(-(2.0**-31) * (1.0 - 2.0**-24)).log1p_().neg_()


def _mix32(state: torch.Tensor, key: torch.Tensor | int = 0) -> torch.Tensor:
    """Mix int32 numbers in place: Wellons' `lowbias32`, with a key added half-way."""
    # `>>` keeps the sign of an int32: the masks make it a logical shift.
    state ^= (state >> 16) & 0xFFFF
    state *= 0x7FEB352D
    state += key
    state ^= (state >> 15) & 0x1FFFF
    state *= 0x846CA68B - 2**32
    state ^= (state >> 16) & 0xFFFF
    return state


def prompt_logprobs(logits: torch.Tensor, target_ids: list[int], count: int) -> list[TokenLogprob]:
    """Return the log-probability of each target token under its row of `logits` `[R, vocab_size]`."""
    targets = torch.tensor(target_ids, device=logits.device)
    params = [SamplingParams(logprobs=count)] * len(target_ids)
    return [item for item in _logprobs(logits, targets, params) if item is not None]


def _logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, params: SequenceOf[SamplingParams]
) -> list[TokenLogprob | None]:
    result: list[TokenLogprob | None] = [None] * len(params)
    wanted = [row for row, item in enumerate(params) if item.logprobs is not None]
    if not wanted:
        return result
    index = torch.tensor(wanted, device=logits.device)
    logprobs = torch.log_softmax(logits[index].float(), dim=-1)
    chosen = logprobs.gather(1, token_ids[index].unsqueeze(1))
    ranks = (logprobs > chosen).sum(dim=-1).add(1).tolist()
    most = min(max(params[row].logprobs or 0 for row in wanted), logprobs.shape[1])
    top = logprobs.topk(most, dim=-1)
    columns = (chosen.flatten().tolist(), ranks, top.indices.tolist(), top.values.tolist())
    for row, logprob, rank, ids, values in zip(wanted, *columns, strict=True):
        count = params[row].logprobs
        pairs = tuple(zip(ids[:count], values[:count], strict=True))
        result[row] = TokenLogprob(int(token_ids[row]), logprob, rank, pairs)
    return result
