"""Check what is done to logits before a token is chosen, against transformers and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

from myllm_engine.request import Request, SamplingParams
from myllm_engine.sampling.bad_words import BadWords
from myllm_engine.sampling.edits import edit_logits
from myllm_engine.sequence import Row, Sequence

VOCAB = 300
NO_EOS: frozenset[int] = frozenset()


def make_sequence(
    params: SamplingParams, prompt=(1,), output=(), bad_words: BadWords | None = None
) -> Sequence:
    request = Request(prompt_token_ids=list(prompt), params=params)
    sequence = Sequence(
        request=request, index=0, seed=0, max_total_tokens=10_000, detokenizer=None, bad_words=bad_words
    )
    sequence.token_ids += output
    return sequence


def edit(logits: torch.Tensor, row: Row | Sequence, allowed=None, eos=NO_EOS) -> torch.Tensor:
    row = row if isinstance(row, Row) else Row(row)
    return edit_logits(logits.unsqueeze(0), [row], [allowed], eos_token_ids=eos)[0]


def test_repetition_penalty_equals_transformers():
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5))
    sequence = make_sequence(SamplingParams(repetition_penalty=1.3), prompt=[5, 6, 5], output=[7, 6])
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[5, 6, 5, 7, 6]]), logits[None].clone())
    torch.testing.assert_close(edit(logits, sequence), theirs[0])


def test_penalties_bias_and_min_tokens_by_hand():
    params = SamplingParams(
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias={3: 2.0, 9: -1.5},
        min_tokens=4,
        stop_token_ids=[8],
    )
    eos = frozenset({2})
    expected = torch.zeros(12)
    expected[5], expected[6], expected[3], expected[9] = -1.25, -0.75, 2.0, -1.5
    expected[2] = expected[8] = -math.inf
    sequence = make_sequence(params, prompt=[7], output=[5, 6, 5])
    assert torch.equal(edit(torch.zeros(12), sequence, eos=eos), expected)
    assert edit(torch.zeros(12), Row(sequence, (6,)), eos=eos)[2] == 0.0
    ignoring = make_sequence(SamplingParams(min_tokens=4, ignore_eos=True))
    assert edit(torch.zeros(12), ignoring, eos=eos)[2] == 0.0


def naive_penalties(logits: torch.Tensor, params: SamplingParams, prompt: list[int], output: list[int]):
    """Count from scratch, token by token, in float64."""
    result = logits.double()
    for token_id in set(prompt + output):
        value = result[token_id]
        result[token_id] = (
            value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        )
    for token_id in output:
        result[token_id] -= params.frequency_penalty
    for token_id in set(output):
        result[token_id] -= params.presence_penalty
    return result


@pytest.mark.parametrize("repetition", [1.0, 1.4])
def test_penalties_stay_exact_while_sequences_grow(repetition):
    """Let several sequences grow by one or more tokens a step, with drafts that are kept or thrown away."""
    random = np.random.default_rng(7)
    many = [
        SamplingParams(repetition_penalty=repetition, frequency_penalty=0.3, presence_penalty=-0.2),
        SamplingParams(repetition_penalty=repetition, presence_penalty=0.4),
        SamplingParams(frequency_penalty=-0.5),
        SamplingParams(repetition_penalty=0.8),
        SamplingParams(),
    ]
    sequences = [make_sequence(params, prompt=random.integers(0, VOCAB, 40).tolist()) for params in many]
    for _ in range(30):
        rows = [
            Row(sequence, tuple(random.integers(0, VOCAB, random.integers(0, 5)).tolist()))
            for sequence in sequences
        ]
        logits = torch.from_numpy(random.normal(size=(len(rows), VOCAB)).astype(np.float32))
        before = logits.clone()
        edited = edit_logits(logits, rows, [None] * len(rows), eos_token_ids=NO_EOS)
        assert torch.equal(logits, before)
        for row, ours, given in zip(rows, edited, logits, strict=True):
            prompt = row.sequence.request.prompt_token_ids
            output = [*row.sequence.token_ids[len(prompt) :], *row.drafts]
            expected = naive_penalties(given, row.sequence.params, prompt, output)
            torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)
            fresh = make_sequence(row.sequence.params, prompt=prompt, output=output)
            assert torch.equal(edit(given, fresh), ours)  # as after a preemption, or with fewer drafts
            row.sequence.token_ids += [*row.drafts[: random.integers(0, 5)], int(random.integers(0, VOCAB))]


def test_masks_leave_only_what_all_of_them_allow():
    params = SamplingParams(allowed_token_ids=[4, 5, 6, 7, 5])
    grammar = np.zeros(20, dtype=bool)
    grammar[[3, 5, 6, 7]] = True
    sequence = make_sequence(params, output=[9, 10], bad_words=BadWords([[6], [10, 7], [11, 5]]))
    logits = torch.arange(20.0)
    edited = edit(logits, sequence, grammar)
    assert edited[5] == 5.0
    assert edited.isinf().sum() == 19
    other = make_sequence(SamplingParams(), output=[9, 10])
    both = edit_logits(
        torch.stack([logits, logits]), [Row(sequence), Row(other)], [grammar, None], eos_token_ids=NO_EOS
    )
    assert torch.equal(both[0], edited)
    assert torch.equal(both[1], logits)


def test_min_tokens_yields_where_nothing_else_is_left():
    params = SamplingParams(min_tokens=5, stop_token_ids=[8])
    eos = frozenset({2})
    only_ends, more = np.zeros(12, dtype=bool), np.zeros(12, dtype=bool)
    only_ends[[2, 8]] = True
    more[[2, 8, 3]] = True
    rows = [Row(make_sequence(params)) for _ in range(2)]
    logits = torch.arange(12.0)
    edited = edit_logits(torch.stack([logits, logits]), rows, [only_ends, more], eos_token_ids=eos)
    assert edited[0].isfinite().nonzero().flatten().tolist() == [2, 8]
    assert edited[1].isfinite().nonzero().flatten().tolist() == [3]


def test_bad_words_equal_transformers():
    """Compare at every place of random texts over few tokens, so that words occur often and overlap."""
    random = np.random.default_rng(3)
    words = [[1], [2, 3], [2, 3, 3], [4, 4, 4], [0, 5], [5, 2, 3]]
    reference = NoBadWordsLogitsProcessor(words, eos_token_id=99)
    banned = 0
    for _ in range(200):
        output = random.integers(0, 6, random.integers(1, 12)).tolist()
        drafts = tuple(random.integers(0, 6, random.integers(0, 4)).tolist())
        logits = torch.zeros(8)
        sequence = make_sequence(SamplingParams(), prompt=[7, 2], output=output, bad_words=BadWords(words))
        ours = edit(logits, Row(sequence, drafts))
        assert torch.equal(ours, reference(torch.tensor([[*output, *drafts]]), logits[None].clone())[0])
        banned += int(ours.isinf().sum()) - 1
    assert banned > 50


def test_bad_words_do_not_begin_in_the_prompt():
    words = BadWords([[5, 6]])
    assert edit(torch.zeros(8), make_sequence(SamplingParams(), prompt=[5], bad_words=words))[6] == 0.0
    sequence = make_sequence(SamplingParams(), prompt=[5], output=[5], bad_words=words)
    assert edit(torch.zeros(8), sequence)[6] == -math.inf


def test_bad_words_are_tokenised_with_and_without_a_blank(tokenizer):
    words = BadWords.tokenize(["cat", " extraordinarily"], tokenizer)
    for text in ("cat", " cat", "extraordinarily", " extraordinarily"):
        *beginning, last = tokenizer.encode(text, add_special_tokens=False)
        assert last in words.banned([1, 2, *beginning], 2, ())
        if beginning:
            assert last not in words.banned([1, 2, *beginning[:-1], 0], 2, ())
