"""Check the filters against transformers' logits processors."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from myllm_engine.request import SamplingParams
from myllm_engine.sampling.filters import token_weights

VOCAB = 3000


def warped(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return probabilities as transformers' own processors give them."""
    steps = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k > 0:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        steps.append(MinPLogitsWarper(params.min_p))
    if params.typical_p < 1:
        steps.append(TypicalLogitsWarper(params.typical_p))
    return torch.softmax(steps(torch.ones(1, 1, dtype=torch.int64), logits.clone()), dim=-1)


def probabilities(logits: torch.Tensor, params: list[SamplingParams]) -> torch.Tensor:
    weights = token_weights(logits, params)
    assert weights[:, logits.shape[1] :].sum() == 0
    return (weights / weights.sum(dim=-1, keepdim=True))[:, : logits.shape[1]]


# Nearly flat (nuclei wider than the first and the second try) to peaked.
@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0])
@pytest.mark.parametrize("vocab_size", [VOCAB, 3072 * 4])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 64},
        {"top_k": VOCAB * 9},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"typical_p": 0.2},
        {"typical_p": 0.9},
        {"top_k": 40, "top_p": 0.8},
        {"top_k": 2000, "top_p": 0.9, "min_p": 0.02, "temperature": 1.7},
        {"top_k": 100, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.7},
    ],
)
def test_filters_equal_transformers(fields, vocab_size, spread):
    params = SamplingParams(**fields)
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(2)) * spread
    ours, theirs = probabilities(logits, [params] * 4), warped(logits, params)
    if vocab_size == VOCAB:
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    else:  # float32 does not tell the tokens at the edge apart where so many are nearly alike
        assert (ours - theirs).abs().sum(dim=-1).max() < 2e-3


def test_each_row_is_filtered_by_its_own_parameters():
    many = [
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(),
        SamplingParams(min_p=0.2, temperature=0.5),
        SamplingParams(top_k=1500, top_p=0.99),
        SamplingParams(typical_p=0.5),
        SamplingParams(top_p=0.9999, temperature=3.0),
    ]
    logits = torch.randn(len(many), VOCAB, generator=torch.Generator().manual_seed(3))
    together = token_weights(logits, many)
    for row, params in enumerate(many):
        alone = token_weights(logits[row : row + 1], [params])
        assert torch.equal(together[row], alone[0])


def test_tokens_that_tie_with_the_edge_stay():
    logits = torch.full((1, 500), -1.0)
    logits[0, 7] = 2.0
    logits[0, 100:300] = 1.0
    kept = {"top_k": 3}, {"top_k": 3, "top_p": 0.5}, {"top_p": 0.1}, {"min_p": math.exp(-1.0001)}
    for fields in kept:
        weights = token_weights(logits, [SamplingParams(**fields)])
        assert (weights[0] > 0).nonzero().flatten().tolist() == [7, *range(100, 300)], fields
    # top_k keeps 201 tokens here, so the most likely one's share is 1 / (1 + 200 / e) = 0.0134.
    narrow = token_weights(logits, [SamplingParams(top_k=3, top_p=0.013)])
    assert (narrow[0] > 0).sum() == 1
    wider = token_weights(logits, [SamplingParams(top_k=3, top_p=0.014)])
    assert (wider[0] > 0).sum() == 201
