"""Check the beam search against transformers' own, driven by plain forward passes of a tiny model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
)

from myllm_engine.sampling.beam import BeamSearch, Extension, Hypothesis

VOCAB = 40
MAX_TOKENS = 10
PROMPT = [3, 17, 8, 25]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


@torch.inference_mode()
def search(
    model: LlamaForCausalLM,
    beams: BeamSearch,
    *,
    forbidden: Sequence[int] = (),
    bigram: tuple[int, int] | None = None,
) -> list[Hypothesis]:
    """Run a search to its end, without any cache; a `bigram` ends a text as a stop string does."""
    sequences = [PROMPT]

    def ends(item: Extension) -> bool:
        return (sequences[item.parent][-1], item.token_id) == bigram

    while not beams.done:
        assert beams.num_live == len(sequences)
        logits = model(torch.tensor(sequences)).logits[:, -1].float()
        log_probs = torch.log_softmax(logits, dim=-1)
        log_probs[:, list(forbidden)] = -torch.inf
        sequences = [[*sequences[item.parent], item.token_id] for item in beams.step(log_probs, ends)]
    return beams.hypotheses()


def reference(model: LlamaForCausalLM, width: int, *, stopping_criteria=(), **options):
    return model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        stopping_criteria=StoppingCriteriaList(stopping_criteria),
        generation_config=GenerationConfig(
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=MAX_TOKENS,
            pad_token_id=VOCAB - 1,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        ),
    )


def assert_equal(found: list[Hypothesis], expected) -> None:
    assert len(found) == len(expected.sequences)
    columns = (expected.sequences, expected.sequences_scores, expected.beam_indices)
    for item, row, score, rows in zip(found, *(column.tolist() for column in columns), strict=True):
        length = len(item.token_ids)
        assert list(item.token_ids) == row[len(PROMPT) :][:length]
        assert [*item.beams, *[-1] * (len(rows) - length)] == rows
        assert item.score == pytest.approx(score, abs=1e-4)


CASES = [
    *itertools.product([2, 5], [-1.0, 0.0, 1.0, 2.5], [True, False, "never"], [(7,), (7, 12)]),
    (3, 1.0, False, ()),
]


def make(width, penalty, early_stopping, ends) -> BeamSearch:
    return BeamSearch(
        width,
        max_tokens=MAX_TOKENS,
        end_token_ids=frozenset(ends),
        length_penalty=penalty,
        early_stopping=early_stopping,
    )


@pytest.mark.parametrize(("width", "penalty", "early_stopping", "ends"), CASES)
def test_all_beams_equal_transformers(model, width, penalty, early_stopping, ends):
    found = search(model, make(width, penalty, early_stopping, ends))
    expected = reference(
        model, width, length_penalty=penalty, early_stopping=early_stopping, eos_token_id=list(ends) or None
    )
    assert_equal(found, expected)
    for item in found:
        assert item.finish_reason == ("stop" if item.token_ids[-1] in ends else "length")
        assert item.finish_reason == "stop" or len(item.token_ids) == MAX_TOKENS


def test_the_cases_differ(model):
    """Guard the comparison above: were all cases alike, it could not tell one rule from another."""
    found = [search(model, make(*case)) for case in CASES[::3]]
    assert len({tuple(item.token_ids for item in items) for items in found}) >= 8
    assert len({len(item.token_ids) for items in found for item in items}) >= 4
    assert {item.finish_reason for items in found for item in items} == {"stop", "length"}


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_what_is_not_allowed_is_left_out_as_in_transformers(model, early_stopping):
    plain = search(model, make(3, 1.0, early_stopping, (7,)))
    forbidden = [plain[0].token_ids[0], plain[-1].token_ids[1]]
    found = search(model, make(3, 1.0, early_stopping, (7,)), forbidden=forbidden)
    expected = reference(model, 3, early_stopping=early_stopping, eos_token_id=[7], suppress_tokens=forbidden)
    assert found != plain
    assert_equal(found, expected)


class EndsWith(StoppingCriteria):
    def __init__(self, bigram: tuple[int, int]) -> None:
        self.bigram = torch.tensor(bigram)

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, -2:] == self.bigram).all(dim=-1)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_texts_that_are_complete_otherwise_end_as_in_transformers(model, early_stopping):
    plain = search(model, make(3, 0.0, early_stopping, (7,)))
    ended = 0
    for bigram in itertools.pairwise(plain[0].token_ids[:5]):
        found = search(model, make(3, 0.0, early_stopping, (7,)), bigram=bigram)
        criteria = [EndsWith(bigram)]
        expected = reference(
            model,
            3,
            length_penalty=0.0,  # which favours those that end soon
            early_stopping=early_stopping,
            eos_token_id=[7],
            stopping_criteria=criteria,
        )
        assert_equal(found, expected)
        ended += sum(item.token_ids[-2:] == bigram and item.finish_reason == "stop" for item in found)
    assert ended > 0


def test_there_are_fewer_beams_where_only_few_ways_are_allowed():
    beams = make(4, 1.0, False, (1,))
    only = torch.full((1, 6), -torch.inf)
    only[0, [3, 5]] = torch.tensor([-0.5, -1.0])
    assert beams.step(only) == [Extension(0, 3), Extension(0, 5)]
    end = torch.full((2, 6), -torch.inf)
    end[:, 1] = torch.tensor([-2.0, -0.25])
    assert beams.step(end) == []
    assert beams.done
    assert [(item.token_ids, item.score) for item in beams.hypotheses()] == [
        ((5, 1), pytest.approx(-1.25 / 2)),
        ((3, 1), pytest.approx(-2.5 / 2)),
    ]
