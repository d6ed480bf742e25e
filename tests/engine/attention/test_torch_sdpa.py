"""Check paged attention against attention written out, over random batches and all options."""

from __future__ import annotations

import itertools

import pytest
import torch

from myllm_engine.attention.backend import AttentionCall
from myllm_engine.attention.torch_sdpa import TorchAttention
from myllm_engine.batch import build_batch
from myllm_engine.kv_cache import KVCache, LayerShape, PagePool
from myllm_engine.request import Request
from myllm_engine.scheduler import Scheduled
from myllm_engine.sequence import Sequence

PAGE = 4


def attend(query, key, value, *, scale, window, softcap, sinks, alibi):
    """Attend one sequence's last queries `[heads, rows, dim]` to its keys, one row and head at a time."""
    heads, rows, _ = query.shape
    shared = heads // key.shape[0]
    output = torch.empty(rows, heads, value.shape[-1])
    for head, row in itertools.product(range(heads), range(rows)):
        place = key.shape[1] - rows + row
        first = 0 if window is None else max(0, place - window + 1)
        scores = key[head // shared, first : place + 1] @ query[head, row] * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if alibi is not None:
            scores = scores + alibi[head] * (torch.arange(first, place + 1) - place)
        weights = scores.exp()
        total = weights.sum() + (0.0 if sinks is None else sinks[head].exp())
        output[row, head] = (weights / total) @ value[head // shared, first : place + 1]
    return output


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("value_dim", [8, 6])
@pytest.mark.parametrize(
    ("window", "softcap", "sinks", "alibi"),
    [
        (None, None, False, False),
        (5, None, False, False),
        (None, 2.0, False, False),
        (3, 2.0, True, False),
        (None, None, False, True),
        (5, 2.0, True, True),
    ],
)
def test_mixed_batches_equal_attention_written_out(kv_heads, value_dim, window, softcap, sinks, alibi):
    generator = torch.Generator().manual_seed(kv_heads)
    heads, dim = 4, 8
    pool = PagePool(200, PAGE)
    cache = KVCache(
        [LayerShape(kv_heads, dim, value_dim)],
        num_pages=200,
        page_size=PAGE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    backend = TorchAttention(cache)
    sink_values = torch.randn(heads, generator=generator) if sinks else None
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]) if alibi else None
    # Steps of (new tokens of each sequence): prompts alone, in chunks, decodes of very different lengths,
    # mixed.
    steps = [[1, 7, 30, 3], [1, 1, 6, 0], [1, 1, 1, 5], [1, 1, 1, 1], [0, 1, 1, 1]]
    sequences = []
    for lengths in zip(*steps, strict=True):
        request = Request(prompt_token_ids=[0] * sum(lengths))
        sequences.append(Sequence(request=request, index=0, seed=0, max_total_tokens=99, detokenizer=None))
    stored = {
        id(sequence): (torch.empty(kv_heads, 0, dim), torch.empty(kv_heads, 0, value_dim))
        for sequence in sequences
    }
    for step in steps:
        scheduled = []
        for sequence, count in zip(sequences, step, strict=True):
            missing = pool.pages_for(sequence.num_computed + count) - len(sequence.pages)
            sequence.pages += pool.allocate(missing)
            if count:
                scheduled.append(Scheduled(sequence, count, samples=True))
        batch = build_batch(scheduled, page_size=PAGE, device=torch.device("cpu"))
        total = sum(step)
        query = torch.randn(heads, total, dim, generator=generator)
        key = torch.randn(kv_heads, total, dim, generator=generator)
        value = torch.randn(kv_heads, total, value_dim, generator=generator)
        backend.plan(batch)
        options = {"scale": 0.3, "window": window, "softcap": softcap, "sinks": sink_values, "alibi": slopes}
        output = backend.run(AttentionCall(0, query, key, value, **options))
        start = 0
        for item in batch.scheduled:
            rows = slice(start, start + item.num_tokens)
            keys, values = stored[id(item.sequence)]
            keys, values = torch.cat([keys, key[:, rows]], 1), torch.cat([values, value[:, rows]], 1)
            stored[id(item.sequence)] = keys, values
            expected = attend(query[:, rows], keys, values, **options)
            torch.testing.assert_close(output[rows], expected, atol=1e-5, rtol=1e-4)
            item.sequence.num_computed += item.num_tokens
            start += item.num_tokens
