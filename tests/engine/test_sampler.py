"""Check how tokens are chosen: greedily, by exact distributions, and alike wherever a row stands."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from myllm_engine.constraint import Structured
from myllm_engine.errors import ConstraintError, EngineError, GenerationError
from myllm_engine.request import Request, SamplingParams
from myllm_engine.sampler import SampledToken, sample
from myllm_engine.sampling.bad_words import BadWords
from myllm_engine.sequence import Row, Sequence

VOCAB = 3000
EOS = frozenset({2})
# Every kind of request that may stand beside another.
MIXED = [
    {},
    {"temperature": 0},
    {"top_k": 30},
    {"top_p": 0.9},
    {"min_p": 0.05, "temperature": 1.5},
    {"top_k": 1500, "typical_p": 0.9},
    {"repetition_penalty": 1.3, "top_p": 0.95},
    {"frequency_penalty": 0.7, "presence_penalty": 0.4, "temperature": 0},
    {"logit_bias": {5: 3.0, 9: -2.0}, "min_tokens": 30},
    {"allowed_token_ids": list(range(100, 400)), "logprobs": 3},
    {"temperature": 0, "logprobs": 2},
    {"bad_words": ["x"], "top_k": 64, "top_p": 0.5},
]


def make_sequence(params: SamplingParams, prompt=(1,), output=(), seed: int = 0) -> Sequence:
    request = Request(prompt_token_ids=list(prompt), params=params)
    words = BadWords([[11], [12, 13]]) if params.bad_words else None
    sequence = Sequence(
        request=request, index=0, seed=seed, max_total_tokens=10_000, detokenizer=None, bad_words=words
    )
    sequence.token_ids += output
    return sequence


def sample_rows(logits: torch.Tensor, rows: list[Row], allowed=None) -> list[SampledToken | EngineError]:
    return sample(logits, rows, allowed or [None] * len(rows), eos_token_ids=EOS)


def sample_sequences(logits: torch.Tensor, sequences: list[Sequence]) -> list[SampledToken | EngineError]:
    return sample_rows(logits, [Row(sequence) for sequence in sequences])


def logits_of(position: int, vocab_size: int = VOCAB, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return what a model might say at a position; in bfloat16 there are many ties."""
    return (torch.randn(vocab_size, generator=torch.Generator().manual_seed(position)) * 2.5).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_of_the_largest_logits(dtype):
    logits = torch.stack([logits_of(row, dtype=dtype) for row in range(40)])
    tokens = sample_sequences(logits, [make_sequence(SamplingParams(temperature=0))] * 40)
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert [token.token_id for token in tokens] == expected


@pytest.mark.parametrize("temperature", [9e-6, 1e-30, 1e-50])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(4)) * 20
    sequences = [make_sequence(SamplingParams(temperature=temperature), seed=row) for row in range(2)]
    tokens = sample_sequences(logits, sequences)
    assert [token.token_id for token in tokens] == logits.argmax(dim=-1).tolist()


def generate(params: SamplingParams, seed: int, length: int) -> Sequence:
    """Generate alone, a token a step."""
    sequence = make_sequence(params, seed=seed)
    for _ in range(length):
        (token,) = sample_sequences(logits_of(len(sequence.token_ids)).unsqueeze(0), [sequence])
        sequence.token_ids.append(token.token_id)
    return sequence


def test_rows_are_drawn_alike_alone_in_any_batch_and_order_and_after_preemption():
    random = np.random.default_rng(1)
    finished = [generate(SamplingParams(**fields), seed, 25) for seed, fields in enumerate(MIXED)]
    for length in range(1, 25):
        order = random.permutation(len(MIXED))[: random.integers(1, len(MIXED) + 1)]
        sequences = [
            # A fresh object with the tokens so far is what is left after a preemption.
            make_sequence(finished[index].params, output=finished[index].token_ids[1:length], seed=index)
            for index in order.tolist()
        ]
        tokens = sample_sequences(logits_of(length).expand(len(sequences), -1), sequences)
        assert [token.token_id for token in tokens] == [finished[index].token_ids[length] for index in order]


@pytest.mark.parametrize("fields", MIXED)
def test_verified_drafts_give_what_is_drawn_without_them(fields):
    """Propose tokens that are right, partly right or wrong, and keep what speculation keeps."""
    random = np.random.default_rng(2)
    expected = generate(SamplingParams(**fields), 5, 40).token_ids
    sequence = make_sequence(SamplingParams(**fields), seed=5)
    kept = steps = 0
    while len(sequence.token_ids) < len(expected):
        start = len(sequence.token_ids)
        drafts = expected[start : start + random.integers(0, 5)]
        if drafts and random.random() < 0.6:
            drafts[random.integers(0, len(drafts))] = int(random.integers(0, VOCAB))
        rows = [Row(sequence, tuple(drafts[:count])) for count in range(len(drafts) + 1)]
        tokens = sample_rows(torch.stack([logits_of(row.position) for row in rows]), rows)
        for token, draft in zip(tokens, [*drafts, None], strict=True):
            sequence.token_ids.append(token.token_id)
            if token.token_id != draft:
                break
            kept += 1
        steps += 1
    assert sequence.token_ids[: len(expected)] == expected
    assert kept > 5
    assert steps < 35


def test_draws_and_their_logprobs_do_not_depend_on_the_number_of_rows():
    """Sums must not be split among threads otherwise for one row than for many."""
    vocab_size = 49152
    logits = torch.stack([logits_of(row, vocab_size, torch.float32) for row in range(40)])
    many = [SamplingParams(**fields) for fields in MIXED]
    sequences = [make_sequence(many[row % len(many)], seed=row) for row in range(40)]
    together = sample_sequences(logits, sequences)
    for row in range(40):
        (alone,) = sample_sequences(logits[row : row + 1], [sequences[row]])
        assert alone == together[row]


def test_a_row_that_cannot_be_sampled_fails_alone():
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(9))
    logits[1, 7], logits[2, 7], logits[3] = math.nan, math.inf, -math.inf
    for fields in (
        {},
        {"temperature": 0, "logprobs": 2},
        {"min_tokens": 3},
        {"top_p": 0.5},
        {"typical_p": 0.5},
    ):
        params = SamplingParams(**fields)
        tokens = sample_sequences(logits, [make_sequence(params, seed=row) for row in range(5)])
        assert [isinstance(token, GenerationError) for token in tokens] == [False, True, True, True, False]
        alone = sample_sequences(logits[4:], [make_sequence(params, seed=4)])
        assert tokens[4] == alone[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_leaves_the_best_of_what_it_allows_whatever_else_is_in_the_batch(dtype):
    logits = torch.stack([logits_of(position, dtype=dtype) for position in range(7)])
    few, many = np.zeros(VOCAB, dtype=bool), np.ones(VOCAB, dtype=bool)
    few[[3, 5, 700]] = True
    many[logits.float().topk(4).indices.flatten().numpy()] = False
    greedy, biased = SamplingParams(temperature=0), SamplingParams(temperature=0, logit_bias={5: 90.0})
    masks = [few, None, many, few, many, few, np.zeros(VOCAB, dtype=bool)]
    nothing = SamplingParams(temperature=0, structured=Structured.regex("x"))
    params = [greedy, SamplingParams(), greedy, biased, SamplingParams(), SamplingParams(), nothing]
    rows = [Row(make_sequence(each, seed=place)) for place, each in enumerate(params)]
    *tokens, error = sample_rows(logits, rows, masks)
    best = [logits[row].float().masked_fill(~torch.from_numpy(masks[row]), -math.inf) for row in (0, 2)]
    assert [tokens[0].token_id, tokens[2].token_id] == [int(row.argmax()) for row in best]
    assert tokens[3].token_id == 5
    assert all(masks[row][tokens[row].token_id] for row in (0, 2, 3, 4, 5))
    assert isinstance(error, ConstraintError)
    for place, token in enumerate(tokens):
        assert sample_rows(logits[place : place + 1], [rows[place]], [masks[place]]) == [token]


def test_limits_that_leave_no_token_are_named():
    logits = torch.zeros(4, 20)
    grammar = np.zeros(20, dtype=bool)
    grammar[11] = True
    failed = ConstraintError("too complex")
    regex = Structured.regex("x", param="guided_regex")
    many = [
        SamplingParams(allowed_token_ids=[11], bad_words=["x"]),
        SamplingParams(structured=regex, allowed_token_ids=[4], temperature=0),
        SamplingParams(allowed_token_ids=[4]),
        SamplingParams(structured=regex),
    ]
    rows = [Row(make_sequence(params)) for params in many]
    words, both, fine, passed_on = sample_rows(logits, rows, [None, grammar, None, failed])
    assert isinstance(words, ConstraintError)
    assert "`allowed_token_ids` and `bad_words`" in str(words)
    assert isinstance(both, ConstraintError)
    assert "`allowed_token_ids` and `guided_regex`" in str(both)
    assert both.param == "allowed_token_ids"
    assert fine.token_id == 4
    assert passed_on is failed


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
