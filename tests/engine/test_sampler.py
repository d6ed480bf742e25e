"""Check filters and penalties against transformers' logits processors, and draws by their distribution."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from myllm_engine.request import Request, SamplingParams
from myllm_engine.sampler import derive_seed, draw, filter_logits, process_logits, sample, uniform_numbers
from myllm_engine.sequence import Sequence

VOCAB = 3000
NO_EOS: frozenset[int] = frozenset()


def make_sequence(params: SamplingParams, prompt=(1,), output=(), seed: int = 0) -> Sequence:
    request = Request(prompt_token_ids=list(prompt), params=params)
    sequence = Sequence(request=request, index=0, seed=seed, max_total_tokens=10_000, detokenizer=None)
    sequence.token_ids += output
    return sequence


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


@pytest.mark.parametrize(
    "spread", [0.05, 1.0, 4.0]
)  # nearly flat (a nucleus wider than the first try) to peaked
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": VOCAB + 5},
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
def test_filters_equal_transformers(fields, spread):
    params = SamplingParams(**fields)
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(2)) * spread
    ours = torch.softmax(filter_logits(logits.clone(), [params] * 4), dim=-1)
    torch.testing.assert_close(ours, warped(logits, params), atol=1e-6, rtol=1e-4)


def test_each_row_is_filtered_by_its_own_parameters():
    many = [
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(),
        SamplingParams(min_p=0.2, temperature=0.5),
        SamplingParams(top_k=1500, top_p=0.99),
        SamplingParams(typical_p=0.5),
    ]
    logits = torch.randn(len(many), VOCAB, generator=torch.Generator().manual_seed(3))
    together = filter_logits(logits.clone(), many)
    for row, params in enumerate(many):
        alone = filter_logits(logits[row : row + 1].clone(), [params])
        assert torch.equal(together[row], alone[0])


def test_a_tiny_temperature_is_greedy():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(4)) * 20
    filtered = filter_logits(logits.clone(), [SamplingParams(temperature=1e-30)] * 2)
    assert torch.softmax(filtered, dim=-1).max(dim=-1).indices.tolist() == logits.argmax(dim=-1).tolist()
    assert not filtered.isnan().any()


def test_repetition_penalty_equals_transformers():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    sequence = make_sequence(SamplingParams(repetition_penalty=1.3), prompt=[5, 6, 5], output=[7, 6])
    ours = logits[0].clone()
    process_logits(ours, sequence, eos_token_ids=NO_EOS)
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[5, 6, 5, 7, 6]]), logits.clone())
    torch.testing.assert_close(ours, theirs[0])


def test_penalties_bias_and_min_tokens_by_hand():
    params = SamplingParams(
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias={3: 2.0, 9: -1.5},
        min_tokens=4,
        stop_token_ids=[8],
    )
    row = torch.zeros(12)
    process_logits(row, make_sequence(params, prompt=[7], output=[5, 6, 5]), eos_token_ids=frozenset({2}))
    expected = torch.zeros(12)
    expected[5], expected[6], expected[3], expected[9] = -1.25, -0.75, 2.0, -1.5
    expected[2] = expected[8] = -math.inf
    assert torch.equal(row, expected)
    row = torch.zeros(12)
    process_logits(row, make_sequence(params, output=[5, 6, 5, 6]), eos_token_ids=frozenset({2}))
    assert row[2] == 0.0


def test_draws_follow_the_distribution():
    """Compare 40,000 draws with the exact probabilities by Pearson's chi-square test."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 0.3, 1.2]])
    params = SamplingParams(temperature=1.3, top_k=6)
    count = 40_000
    uniforms = torch.from_numpy(uniform_numbers([11] * count, range(count)))
    filtered = filter_logits(logits.clone(), [params])
    tokens = draw(filtered.expand(count, -1), uniforms)
    expected = warped(logits, params)[0] * count
    observed = torch.bincount(tokens, minlength=8)
    assert observed[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert statistic < 20.5  # 5 degrees of freedom: exceeded by chance once in a thousand seeds


def test_draws_at_the_ends_have_probability():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    for uniform, token in ((0.0, 1), (0.49999, 1), (0.50001, 3), (1.0 - 2**-53, 3)):
        assert draw(logits, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


def test_uniform_numbers_are_uniform_and_independent():
    numbers = torch.from_numpy(
        uniform_numbers([s for s in range(-50, 50) for _ in range(200)], [*range(200)] * 100)
    )
    counts = torch.histc(numbers.float(), bins=20, min=0, max=1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # 19 degrees of freedom, one in a thousand
    table = numbers.view(100, 200)
    assert torch.corrcoef(table).fill_diagonal_(0).abs().max() < 0.35
    assert torch.corrcoef(table.T).fill_diagonal_(0).abs().max() < 0.5
    assert len({derive_seed(0, number) for number in range(1000)}) == 1000


def test_a_row_is_drawn_alike_alone_and_in_a_batch():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(5, VOCAB, generator=generator).to(torch.bfloat16)  # many ties
    many = [
        SamplingParams(),
        SamplingParams(top_k=30),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=0),
        SamplingParams(top_k=1500, typical_p=0.9),
    ]
    for position in range(30):
        sequences = [
            make_sequence(params, output=range(position), seed=row) for row, params in enumerate(many)
        ]
        together = [token.token_id for token in sample(logits, sequences, eos_token_ids=NO_EOS)]
        alone = [
            sample(logits[row : row + 1], [sequence], eos_token_ids=NO_EOS)[0].token_id
            for row, sequence in enumerate(sequences)
        ]
        assert together == alone


def test_logprobs_are_of_the_unmodified_distribution():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(7))
    unmodified = torch.log_softmax(logits, dim=-1)
    params = SamplingParams(temperature=0.2, top_k=3, logprobs=4, logit_bias={17: 100.0})
    token, plain = sample(
        logits, [make_sequence(params), make_sequence(SamplingParams(temperature=0))], eos_token_ids=NO_EOS
    )
    assert token.token_id == 17
    assert plain.logprob is None
    assert token.logprob.logprob == pytest.approx(float(unmodified[0, 17]))
    assert token.logprob.rank == int((unmodified[0] > unmodified[0, 17]).sum()) + 1
    assert [index for index, _ in token.logprob.top] == unmodified[0].topk(4).indices.tolist()
    zero = sample(logits[:1], [make_sequence(SamplingParams(logprobs=0))], eos_token_ids=NO_EOS)[0]
    assert zero.logprob.top == ()
