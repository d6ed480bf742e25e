"""Compare thousands of draws with exact probabilities, which are worked out from the definitions in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from myllm_engine.request import Request, SamplingParams
from myllm_engine.sampler import sample
from myllm_engine.sampling.draw import draw
from myllm_engine.sampling.noise import noise_keys
from myllm_engine.sequence import Row, Sequence

DRAWS = 5_000
PROMPT, OUTPUT = [3, 5, 5, 7], [5, 6, 6, 2]


def exact(logits: np.ndarray, params: SamplingParams) -> np.ndarray:
    """Return the probabilities to draw with, one rule after the other, token by token."""
    scores = logits.astype(np.float64)
    for token in range(len(scores)):
        if token in PROMPT + OUTPUT:
            factor = params.repetition_penalty
            scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        count = OUTPUT.count(token)
        scores[token] -= params.frequency_penalty * count + params.presence_penalty * (count > 0)
        scores[token] += params.logit_bias.get(token, 0.0)
        if params.allowed_token_ids and token not in params.allowed_token_ids:
            scores[token] = -math.inf
    weights = np.exp((scores - scores.max()) / params.temperature)
    order = sorted(range(len(weights)), key=lambda token: -weights[token])
    if params.top_k > 0:
        weights[order[params.top_k :]] = 0
    probs = weights / weights.sum()
    if params.top_p < 1:
        mass = 0.0
        for token in order:
            if mass >= params.top_p:
                weights[token] = 0
            mass += probs[token]
    weights[weights < params.min_p * weights.max()] = 0
    probs = weights / weights.sum()
    if params.typical_p < 1:
        left = [token for token in order if probs[token] > 0]
        entropy = -sum(probs[token] * math.log(probs[token]) for token in left)
        left.sort(key=lambda token: abs(-math.log(probs[token]) - entropy))
        mass = 0.0
        for token in left:
            if mass >= params.typical_p:
                weights[token] = 0
            mass += probs[token]
    return weights / weights.sum()


def critical(freedom: int) -> float:
    """Return what a chi-square variable exceeds once in 10,000 times (Wilson and Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


def assert_drawn_from(tokens: list[int], probs: np.ndarray) -> None:
    """Test observed counts by Pearson's chi-square, rare tokens taken together."""
    observed = np.bincount(tokens, minlength=len(probs))
    expected = probs * len(tokens)
    assert observed[probs == 0].sum() == 0
    common = expected >= 5
    pairs = list(zip(observed[common], expected[common], strict=True))
    if expected[~common].sum() >= 1:
        pairs.append((observed[~common].sum(), expected[~common].sum()))
    if len(pairs) > 1:
        statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
        assert statistic < critical(len(pairs) - 1)


CASES = [
    {},
    {"temperature": 0.4},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 5},
    {"top_p": 0.3},
    {"top_p": 0.85},
    {"top_p": 0.999},
    {"min_p": 0.2},
    {"typical_p": 0.5},
    {"typical_p": 0.95},
    {"repetition_penalty": 1.6},
    {"frequency_penalty": 0.9},
    {"presence_penalty": -1.2},
    {"logit_bias": {1: 2.0, 4: -3.0}},
    {"allowed_token_ids": [1, 2, 5, 7]},
    {"top_k": 6, "top_p": 0.8},
    {"top_k": 7, "min_p": 0.1, "temperature": 1.8},
    {"top_k": 7, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
    {"repetition_penalty": 0.7, "frequency_penalty": 0.4, "presence_penalty": 0.3, "top_p": 0.9},
    {"allowed_token_ids": [0, 1, 2, 5, 6, 7], "logit_bias": {0: 1.0}, "top_k": 4, "temperature": 0.7},
]


@pytest.mark.parametrize("vocab_size", [8, 64])
@pytest.mark.parametrize("fields", CASES)
def test_draws_have_the_exact_distribution(fields, vocab_size):
    params = SamplingParams(**fields)
    logits = np.random.default_rng(vocab_size).normal(0, 1.6, vocab_size).astype(np.float32)
    request = Request(prompt_token_ids=PROMPT, params=params)
    rows = []
    for seed in range(DRAWS):
        sequence = Sequence(request=request, index=0, seed=seed, max_total_tokens=99, detokenizer=None)
        sequence.token_ids += OUTPUT
        rows.append(Row(sequence))
    many = torch.from_numpy(logits).expand(DRAWS, -1)
    tokens = [token.token_id for token in sample(many, rows, [None] * DRAWS, eos_token_ids=frozenset())]
    assert_drawn_from(tokens, exact(logits, params))


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 130, 1000])
def test_groups_and_their_members_are_drawn_by_their_weights(vocab_size):
    """Draw from several groups of tokens, some of them without any weight."""
    width = -(-vocab_size // 64) * 64
    weights = np.zeros(width, dtype=np.float32)
    weights[:vocab_size] = np.random.default_rng(vocab_size).exponential(1, vocab_size) ** 3
    weights[: vocab_size // 2 : 3] = 0
    count = 60_000
    tokens: list[int] = []
    for start in range(0, count, 10_000):
        keys = noise_keys([start] * 10_000, range(10_000))
        tokens += draw(torch.from_numpy(weights).expand(10_000, -1), keys).tolist()
    assert_drawn_from(tokens, weights.astype(np.float64) / weights.sum(dtype=np.float64))


def test_draws_at_neighbouring_places_are_independent():
    """Test pairs of draws, of one seed at two positions and of two seeds, against the product."""
    weights = torch.zeros(1, 64)
    weights[0, :6] = torch.tensor([3.0, 2.0, 2.0, 1.0, 1.0, 1.0])
    share = (weights[0, :6] / weights.sum()).double().numpy()
    pairs = np.outer(share, share).ravel()
    seeds, positions = np.divmod(np.arange(40_000), 200)
    tokens = draw(weights.expand(40_000, -1), noise_keys(seeds.tolist(), positions.tolist())).numpy()
    table = tokens.reshape(200, 200)
    assert_drawn_from((table[:, 0::2] * 6 + table[:, 1::2]).ravel().tolist(), pairs)
    assert_drawn_from((table[0::2] * 6 + table[1::2]).ravel().tolist(), pairs)


def test_a_draw_without_alternatives_takes_the_only_token():
    weights = torch.zeros(5000, 128)
    weights[:, 77] = 1e-30
    assert draw(weights, noise_keys(range(5000), [0] * 5000)).tolist() == [77] * 5000


def test_rounding_noise_hardly_changes_a_draw():
    """A batch of another size changes logits in their last bits; most draws must not notice."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(400, 3008, generator=generator) * 2
    rounded = logits * (1 + 2**-9 * (2 * torch.rand(400, 3008, generator=generator) - 1))  # as bfloat16 does
    keys = noise_keys(range(400), [5] * 400)
    assert (draw(logits.exp(), keys) != draw(rounded.exp(), keys)).sum() < 12
