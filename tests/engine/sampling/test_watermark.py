"""Check the watermark against transformers'."""

from __future__ import annotations

import torch
from transformers import WatermarkLogitsProcessor

from myllm_engine.request import Request, SamplingParams
from myllm_engine.sampling.edits import edit_logits
from myllm_engine.sampling.watermark import green_list
from myllm_engine.sequence import Row, Sequence

VOCAB = 301


def make_row(tokens: list[int], drafts: tuple[int, ...] = (), **params) -> Row:
    request = Request(prompt_token_ids=tokens, params=SamplingParams(watermark=True, **params))
    sequence = Sequence(request=request, index=0, seed=0, max_total_tokens=1000, detokenizer=None)
    return Row(sequence, drafts)


def edit(logits: torch.Tensor, *rows: Row) -> torch.Tensor:
    return edit_logits(logits, rows, [None] * len(rows), eos_token_ids=frozenset())


def test_green_tokens_are_favoured_as_in_transformers():
    theirs = WatermarkLogitsProcessor(VOCAB, "cpu", greenlist_ratio=0.5, bias=2.0)
    texts = [[5, 17], [17, 5], [0], [300]]
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))
    expected = torch.cat(
        [theirs(torch.tensor([ids]), row[None]) for ids, row in zip(texts, logits, strict=True)]
    )
    assert torch.equal(edit(logits, *map(make_row, texts)), expected)
    assert not torch.equal(expected[0], expected[1])


def test_a_draft_is_the_token_before():
    logits = torch.zeros(1, VOCAB)
    assert torch.equal(edit(logits, make_row([1, 2], drafts=(3, 4))), edit(logits, make_row([9, 4])))


def test_others_in_the_batch_are_left_alone():
    logits = torch.zeros(2, VOCAB)
    request = Request(prompt_token_ids=[1], params=SamplingParams(logit_bias={0: 1.0}))
    plain = Row(Sequence(request=request, index=0, seed=0, max_total_tokens=9, detokenizer=None))
    work = edit(logits, plain, make_row([7]))
    assert work[0].count_nonzero() == 1
    assert work[1].nonzero().flatten().tolist() == sorted(green_list(7, VOCAB).tolist())
    assert work[1].count_nonzero() == VOCAB // 2
