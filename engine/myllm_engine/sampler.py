"""Choose the next token of each sequence from its row of logits.

Every draw takes one uniform number that depends on nothing but the sequence's seed and the token's position,
and looks it up in the cumulative distribution over the vocabulary. A seeded request therefore gives the same
tokens alone, in any batch and after a preemption. Filters reduce to one cut-off value per row (tokens that
tie with it stay), so that the order of candidates, which a partial sort leaves open, does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from .request import SamplingParams, TokenLogprob
from .sequence import Sequence

# Most nuclei are narrower than this many tokens; only rows whose nucleus is wider pay for looking at more.
_FIRST_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class SampledToken:
    """Hold a drawn token, and its log-probability when the request asked for it."""

    token_id: int
    logprob: TokenLogprob | None = None


def sample(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], *, eos_token_ids: frozenset[int]
) -> list[SampledToken]:
    """Draw one token per row of `logits` `[R, vocab_size]`, under the parameters of the row's sequence."""
    all_params = [sequence.params for sequence in sequences]
    work = logits
    if any(_is_processed(sequence) for sequence in sequences):
        work = logits.to(torch.float32, copy=True)
        for row, sequence in zip(work, sequences, strict=True):
            if _is_processed(sequence):
                process_logits(row, sequence, eos_token_ids=eos_token_ids)
    token_ids = work.argmax(dim=-1)
    drawn = [row for row, params in enumerate(all_params) if not params.greedy]
    if drawn:
        index = torch.tensor(drawn, device=logits.device)
        scaled = filter_logits(work[index].float(), [all_params[row] for row in drawn])
        uniforms = uniform_numbers(
            [sequences[row].seed for row in drawn], [len(sequences[row].token_ids) for row in drawn]
        )
        token_ids[index] = draw(scaled, torch.from_numpy(uniforms).to(logits.device))
    logprobs = _logprobs(logits, token_ids, all_params)
    return [
        SampledToken(token_id, logprob)
        for token_id, logprob in zip(token_ids.tolist(), logprobs, strict=True)
    ]


def uniform_numbers(seeds: SequenceOf[int], positions: SequenceOf[int]) -> np.ndarray:
    """Return float64 numbers in [0, 1), one per (seed, position).

    The generator is SplitMix64 (Steele, Lea, Flood 2014), a counter run through a mixing function: position
    is the counter, the mixed seed its start.
    """
    start = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64) + _GOLDEN)
    state = _mix(start + _GOLDEN * (np.array(positions, dtype=np.uint64) + np.uint64(1)))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


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


def _is_processed(sequence: Sequence) -> bool:
    params = sequence.params
    return bool(
        params.repetition_penalty != 1.0
        or params.frequency_penalty
        or params.presence_penalty
        or params.logit_bias
        or sequence.num_output_tokens < params.min_tokens
        or sequence.matcher is not None
    )


def process_logits(row: torch.Tensor, sequence: Sequence, *, eos_token_ids: frozenset[int]) -> None:
    """Apply penalties, bias, `min_tokens` and the grammar to one float32 row of logits, in place."""
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sequence.token_ids, device=row.device).unique()
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if params.frequency_penalty or params.presence_penalty:
        output = sequence.token_ids[sequence.num_prompt_tokens :]
        seen, counts = torch.tensor(output, dtype=torch.int64, device=row.device).unique(return_counts=True)
        row[seen] -= params.frequency_penalty * counts + params.presence_penalty
    if params.logit_bias:
        row[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()), device=row.device)
    if sequence.num_output_tokens < params.min_tokens:
        banned = set(params.stop_token_ids) | (set() if params.ignore_eos else eos_token_ids)
        row[sorted(banned)] = float("-inf")
    if sequence.matcher is not None:
        sequence.matcher.mask(row)


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


def draw(logits: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return `[R]` token ids: per row the first whose cumulative probability exceeds its uniform number."""
    cumulative = torch.softmax(logits, dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Below the total even after rounding, so that the token found always has a probability above zero.
    below = total.nextafter(torch.zeros_like(total))
    target = torch.minimum(uniforms.to(total.dtype).unsqueeze(1) * total, below)
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


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
