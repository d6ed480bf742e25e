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

from myllm_engine.errors import EngineError, GenerationError
from myllm_engine.request import Request, SamplingParams
from myllm_engine.sampler import (
    SampledToken,
    derive_seed,
    draw,
    exponential_noise,
    filter_logits,
    noise_keys,
    process_logits,
    sample,
)
from myllm_engine.sequence import Row, Sequence

VOCAB = 3000
NO_EOS: frozenset[int] = frozenset()


def make_sequence(params: SamplingParams, prompt=(1,), output=(), seed: int = 0) -> Sequence:
    request = Request(prompt_token_ids=list(prompt), params=params)
    sequence = Sequence(request=request, index=0, seed=seed, max_total_tokens=10_000, detokenizer=None)
    sequence.token_ids += output
    return sequence


def sample_sequences(logits: torch.Tensor, sequences: list[Sequence]) -> list[SampledToken | EngineError]:
    """Draw the next token of each sequence, which no grammar constrains."""
    rows = [Row(sequence) for sequence in sequences]
    return sample(logits, rows, [None] * len(rows), eos_token_ids=NO_EOS)


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


@pytest.mark.parametrize("temperature", [9e-6, 1e-30, 1e-50])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(4)) * 20
    sequences = [make_sequence(SamplingParams(temperature=temperature), seed=row) for row in range(2)]
    tokens = sample_sequences(logits, sequences)
    assert [token.token_id for token in tokens] == logits.argmax(dim=-1).tolist()


def test_repetition_penalty_equals_transformers():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(5))
    sequence = make_sequence(SamplingParams(repetition_penalty=1.3), prompt=[5, 6, 5], output=[7, 6])
    ours = logits[0].clone()
    process_logits(ours, Row(sequence), None, eos_token_ids=NO_EOS)
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
    sequence = make_sequence(params, prompt=[7], output=[5, 6, 5])
    process_logits(row, Row(sequence), None, eos_token_ids=frozenset({2}))
    expected = torch.zeros(12)
    expected[5], expected[6], expected[3], expected[9] = -1.25, -0.75, 2.0, -1.5
    expected[2] = expected[8] = -math.inf
    assert torch.equal(row, expected)
    row = torch.zeros(12)
    process_logits(row, Row(sequence, (6,)), None, eos_token_ids=frozenset({2}))
    assert row[2] == 0.0


def test_draws_follow_the_distribution():
    """Compare 40,000 draws with the exact probabilities by Pearson's chi-square test."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 0.3, 1.2]])
    params = SamplingParams(temperature=1.3, top_k=6)
    count = 40_000
    filtered = filter_logits(logits.clone(), [params])
    tokens = draw(filtered.expand(count, -1), noise_keys([11] * count, range(count)))
    expected = warped(logits, params)[0] * count
    observed = torch.bincount(tokens, minlength=8)
    assert observed[expected == 0].sum() == 0
    kept = expected > 0
    statistic = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert statistic < 20.5  # 5 degrees of freedom: exceeded by chance once in a thousand seeds


def test_a_draw_without_alternatives_takes_the_only_token():
    logits = torch.full((5000, 5), -math.inf)
    logits[:, 3] = 0.0
    assert draw(logits, noise_keys(range(5000), [0] * 5000)).tolist() == [3] * 5000


def test_noise_is_exponential_and_independent_over_seeds_positions_and_tokens():
    keys = noise_keys([seed for seed in range(-50, 50) for _ in range(20)], [*range(20)] * 100)
    noise = exponential_noise(keys, 50).double()  # [100 seeds * 20 positions, 50 tokens]
    assert noise.min() > 0
    uniforms = -torch.expm1(-noise)
    counts = torch.histc(uniforms, bins=20, min=0, max=1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # 19 degrees of freedom, one in a thousand
    table = uniforms.view(100, 20, 50)
    for axis in range(3):  # 4.9 million pairs at most: 5.5 standard deviations and some more
        rows = table.movedim(axis, 0).flatten(1)
        correlations = torch.corrcoef(rows).fill_diagonal_(0).abs()
        assert correlations.max() < 6 / rows.shape[1] ** 0.5
    # Neighbours, as an additive generator would leave them.
    assert (
        torch.corrcoef(torch.stack([table[:, :, 1:].flatten(), table[:, :, :-1].flatten()]))[0, 1].abs()
        < 0.015
    )
    # The smallest numbers decide who wins: they must be as fine as the rest.
    small = exponential_noise(noise_keys(range(200), [0] * 200), 49152).flatten()
    assert len(small[small < 1e-4].unique()) > 0.99 * (small < 1e-4).sum()
    assert (small < 1e-5).sum().item() == pytest.approx(len(small) * 1e-5, rel=0.35)
    assert len({derive_seed(0, number) for number in range(1000)}) == 1000


def test_rounding_noise_hardly_changes_a_draw():
    """A batch of another size changes logits in their last bits; most draws must not notice."""
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(400, VOCAB, generator=generator) * 2
    rounded = logits * (1 + 2**-9 * (2 * torch.rand(400, VOCAB, generator=generator) - 1))  # as bfloat16 does
    keys = noise_keys(range(400), [5] * 400)
    assert (draw(logits, keys) != draw(rounded, keys)).sum() < 12


def test_a_row_that_cannot_be_sampled_fails_alone():
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(9))
    logits[1, 7], logits[2, 7], logits[3] = math.nan, math.inf, -math.inf
    for params in (SamplingParams(), SamplingParams(temperature=0, logprobs=2), SamplingParams(min_tokens=3)):
        tokens = sample_sequences(logits, [make_sequence(params, seed=row) for row in range(5)])
        assert [isinstance(token, GenerationError) for token in tokens] == [False, True, True, True, False]
        alone = sample_sequences(logits[4:], [make_sequence(params, seed=4)])
        assert tokens[4] == alone[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-50},
        {"temperature": 1e-6},
        {"temperature": 1e-5},
        {"temperature": 1e30},
        {"repetition_penalty": 1e-6, "temperature": 1e-5},
        {"repetition_penalty": 1e6},
        {"logit_bias": {5: 1e30, 6: -1e30}, "temperature": 1e-5},
        {"logit_bias": {5: 1e30}, "repetition_penalty": 1e-6},
        {"top_p": 1e-300, "min_p": 1e-300, "typical_p": 1e-300},
    ],
)
def test_extreme_parameters_still_give_a_token(fields):
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(10)) * 30
    logits[2] = -math.inf  # as a constraint leaves it
    logits[2, 11] = 1.0
    sequences = [make_sequence(SamplingParams(**fields), prompt=[1, 5, 6], seed=row) for row in range(3)]
    tokens = [token.token_id for token in sample_sequences(logits, sequences)]
    assert all(0 <= token < VOCAB for token in tokens)
    assert tokens[2] == 11
    if fields.get("temperature", 1.0) < 1e-5:
        assert tokens == logits.argmax(dim=-1).tolist()


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
        together = [token.token_id for token in sample_sequences(logits, sequences)]
        alone = [
            sample_sequences(logits[row : row + 1], [sequence])[0].token_id
            for row, sequence in enumerate(sequences)
        ]
        assert together == alone


def test_logprobs_are_of_the_unmodified_distribution():
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(7))
    unmodified = torch.log_softmax(logits, dim=-1)
    params = SamplingParams(temperature=0.2, top_k=3, logprobs=4, logit_bias={17: 100.0})
    token, plain = sample_sequences(
        logits, [make_sequence(params), make_sequence(SamplingParams(temperature=0))]
    )
    assert token.token_id == 17
    assert plain.logprob is None
    assert token.logprob.logprob == pytest.approx(float(unmodified[0, 17]))
    assert token.logprob.rank == int((unmodified[0] > unmodified[0, 17]).sum()) + 1
    assert [index for index, _ in token.logprob.top] == unmodified[0].topk(4).indices.tolist()
    zero = sample_sequences(logits[:1], [make_sequence(SamplingParams(logprobs=0))])[0]
    assert zero.logprob.top == ()
