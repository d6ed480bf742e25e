"""Check log-probabilities, ranks and the most likely tokens against a sort in float64."""

from __future__ import annotations

import pytest
import torch

from myllm_engine.sampling.kernels import top_k
from myllm_engine.sampling.logprobs import TokenLogprobs, prompt_logprobs


def assert_exact(item, row: torch.Tensor, token_id: int, count: int) -> None:
    expected = torch.log_softmax(row.double(), dim=-1)
    order = expected.argsort(descending=True)
    assert item.token_id == token_id
    assert item.logprob == pytest.approx(float(expected[token_id]), abs=1e-5)
    assert item.rank == order.tolist().index(token_id) + 1
    assert [index for index, _ in item.top] == order[:count].tolist()
    assert [value for _, value in item.top] == pytest.approx(expected[order[:count]].tolist(), abs=1e-5)


@pytest.mark.parametrize("vocab_size", [50, 1000, 4096, 8192])
def test_logprobs_ranks_and_most_likely_tokens(vocab_size):
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(150, vocab_size, generator=generator) * 4
    token_ids = torch.randint(0, vocab_size, (150,), generator=generator)
    counts = [None, 0, 1, 5, 20] * 30
    items = TokenLogprobs(logits, token_ids, counts).result()
    for item, row, token_id, count in zip(items, logits, token_ids.tolist(), counts, strict=True):
        if count is None:
            assert item is None
        else:
            assert_exact(item, row, token_id, count)


def test_prompt_logprobs():
    logits = torch.randn(130, 4096, generator=torch.Generator().manual_seed(1)) * 3
    targets = torch.randint(0, 4096, (130,), generator=torch.Generator().manual_seed(2)).tolist()
    items = prompt_logprobs(logits, targets, 3)
    for item, row, token_id in zip(items, logits, targets, strict=True):
        assert_exact(item, row, token_id, 3)
    assert prompt_logprobs(logits[:0], [], 3) == []


def test_named_tokens_take_the_place_of_likely_ones():
    logits = torch.randn(70, 4096, generator=torch.Generator().manual_seed(5)) * 3
    token_ids = logits.argmax(dim=-1)
    chosen = {0: [7, 4000, 8], 66: [5]}  # in two parts, and beside rows that want likely ones
    items = TokenLogprobs(logits, token_ids, [2] * 70, chosen).result()
    for row, item in enumerate(items):
        expected = torch.log_softmax(logits[row].double(), dim=-1)
        if row not in chosen:
            assert_exact(item, logits[row], int(token_ids[row]), 2)
            continue
        assert {token for token, _ in item.top} == set(chosen[row])
        for token, value in item.top:
            assert value == pytest.approx(float(expected[token]), abs=1e-5)
        values = [value for _, value in item.top]
        assert values == sorted(values, reverse=True)


def test_more_than_the_vocabulary_gives_all_of_it():
    (item,) = prompt_logprobs(torch.tensor([[0.0, 2.0, 1.0]]), [0], 10)
    assert [index for index, _ in item.top] == [1, 2, 0]
    assert item.rank == 3


@pytest.mark.parametrize("k", [1, 5, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # many ties
def test_top_k_equals_torchs(k, dtype):
    values = torch.randn(3, 32 * 400, generator=torch.Generator().manual_seed(k)).to(dtype)
    values[2, 100:] = -torch.inf
    found, index = top_k(values, k)
    assert torch.equal(found, values.topk(k).values)
    assert torch.equal(values.gather(1, index), found)
    assert all(len(set(row)) == k for row in index.tolist())
