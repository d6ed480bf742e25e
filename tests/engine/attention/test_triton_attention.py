"""Check the Triton kernels against attention written out: on the GPU, or else through Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from myllm_engine.attention.backend import AttentionCall
from myllm_engine.batch import build_batch
from myllm_engine.kv_cache import KVCache, LayerShape

pytest.importorskip("triton")
from myllm_engine.attention.triton_attention import TritonAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
PAGE = 4


@dataclass(frozen=True)
class Case:
    """One shape of attention; `contexts` and `queries` are tokens per sequence, decodes first."""

    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    alibi: bool = False
    dtype: torch.dtype = torch.float32
    processors: int = 1
    queries: tuple[int, ...] = (1, 1, 5, 3)
    contexts: tuple[int, ...] = (150, 7, 40, 3)


def check(case: Case) -> None:
    """Attend over a cache of shuffled pages and compare with a softmax in float64 over the whole sequences."""
    generator = torch.Generator().manual_seed(0)
    layer = LayerShape(case.kv_heads, case.key_dim, case.value_dim)
    num_pages = sum(-(-length // PAGE) for length in case.contexts) + 1
    cache = KVCache([layer], num_pages=num_pages, page_size=PAGE, dtype=case.dtype, device=DEVICE)
    backend = TritonAttention(
        cache,
        max_num_seqs=len(case.contexts),
        max_model_len=max(case.contexts),
        num_processors=case.processors,
    )
    pages = iter((torch.randperm(num_pages - 1, generator=generator) + 1).tolist())
    tables = [[next(pages) for _ in range(-(-length // PAGE))] for length in case.contexts]

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(case.dtype)

    keys = [random(length, case.kv_heads, case.key_dim) for length in case.contexts]
    values = [random(length, case.kv_heads, case.value_dim) for length in case.contexts]
    slots = [
        torch.tensor([table[place // PAGE] * PAGE + place % PAGE for place in range(length)])
        for table, length in zip(tables, case.contexts, strict=True)
    ]
    new = [slice(length - query, length) for length, query in zip(case.contexts, case.queries, strict=True)]
    for name, tensors in ((cache.keys[0], keys), (cache.values[0], values)):
        for places, tensor, part in zip(slots, tensors, new, strict=True):
            old = slice(0, part.start)
            name.flatten(0, 1)[places[old].to(DEVICE)] = tensor[old].to(DEVICE)
    # As transformers hands them over: [1, T, heads, dim] transposed.
    total = sum(case.queries)
    query = random(total, case.heads, case.key_dim).to(DEVICE).transpose(0, 1)
    sinks = random(case.heads).to(DEVICE) if case.sinks else None
    slopes = torch.rand(case.heads, generator=generator).to(DEVICE) / 4 if case.alibi else None
    batch = replace(
        build_batch([], page_size=PAGE, device=DEVICE),
        slots=torch.cat([places[part] for places, part in zip(slots, new, strict=True)]).to(DEVICE),
        query_lens=list(case.queries),
        context_lens=list(case.contexts),
        page_tables=tables,
        num_decodes=case.queries.count(1),
    )
    backend.plan(batch)
    call = AttentionCall(
        0,
        query,
        torch.cat([tensor[part] for tensor, part in zip(keys, new, strict=True)]).to(DEVICE).transpose(0, 1),
        torch.cat([tensor[part] for tensor, part in zip(values, new, strict=True)])
        .to(DEVICE)
        .transpose(0, 1),
        scale=0.4,
        window=case.window,
        softcap=case.softcap,
        sinks=sinks,
        alibi=slopes,
    )
    output = backend.run(call)
    assert output.dtype == case.dtype
    start = 0
    for key, value, length, rows in zip(keys, values, case.contexts, case.queries, strict=True):
        expected = written_out(case, query[:, start : start + rows], key, value, length, sinks, slopes)
        actual = output[start : start + rows].double().cpu()
        torch.testing.assert_close(actual, expected, atol=TOLERANCE[case.dtype], rtol=TOLERANCE[case.dtype])
        start += rows


def written_out(case, query, key, value, length, sinks, slopes):
    """Return `[rows, heads, value_dim]` in float64."""
    shared = case.heads // case.kv_heads
    key = key.double().repeat_interleave(shared, 1)
    value = value.double().repeat_interleave(shared, 1)
    scores = torch.einsum("hqd,khd->hqk", query.double().cpu(), key) * 0.4
    if case.softcap is not None:
        scores = case.softcap * torch.tanh(scores / case.softcap)
    distance = torch.arange(length) - torch.arange(length - query.shape[1], length).unsqueeze(1)
    if slopes is not None:
        scores = scores + slopes.double().cpu().view(-1, 1, 1) * distance
    hidden = distance > 0
    if case.window is not None:
        hidden |= distance <= -case.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if sinks is not None:
        extra = sinks.double().cpu().view(-1, 1, 1).expand(-1, query.shape[1], 1)
        scores = torch.cat([scores, extra], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., :length]
    return torch.einsum("hqk,khd->qhd", weights, value)


CASES = {
    "plain": Case(),
    "split": Case(processors=16),
    "window": Case(window=9),
    "window, split": Case(window=70, processors=8),
    "softcap": Case(softcap=1.5),
    "sinks": Case(sinks=True, processors=4),
    "alibi": Case(alibi=True),
    "everything": Case(window=20, softcap=2.0, sinks=True, alibi=True, processors=4),
    "values narrower (MLA)": Case(heads=2, kv_heads=2, key_dim=24, value_dim=16),
    "odd widths and groups": Case(heads=9, kv_heads=3, key_dim=20, value_dim=12, processors=4),
    "one key head": Case(heads=20, kv_heads=1, queries=(1, 1, 9), contexts=(30, 2, 12)),
    "decodes alone": Case(queries=(1, 1, 1), contexts=(65, 64, 1)),
    "prompts alone": Case(queries=(70, 2), contexts=(70, 2)),
    "drafts to verify": Case(queries=(1, 5, 5, 3), contexts=(90, 100, 33, 3), processors=4),
    "float16": Case(dtype=torch.float16, processors=4),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_equal_attention_written_out(case):
    check(case)


BIG = {
    "llama": Case(heads=32, kv_heads=8, key_dim=128, value_dim=128),
    "smollm": Case(heads=9, kv_heads=3, key_dim=64, value_dim=64),
    "gemma": Case(heads=8, kv_heads=4, key_dim=256, value_dim=256, window=512, softcap=50.0),
    "gpt_oss": Case(heads=64, kv_heads=8, key_dim=64, value_dim=64, window=128, sinks=True),
    "deepseek": Case(heads=16, kv_heads=16, key_dim=192, value_dim=128),
    "phi": Case(heads=32, kv_heads=32, key_dim=80, value_dim=80),
    "bloom": Case(heads=16, kv_heads=16, key_dim=64, value_dim=64, alibi=True),
    "mqa": Case(heads=71, kv_heads=1, key_dim=64, value_dim=64),
}


# Triton's interpreter multiplies no bfloat16.
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", BIG.values(), ids=BIG)
def test_kernels_at_the_sizes_of_real_models(case, dtype):
    check(
        replace(
            case,
            dtype=dtype,
            processors=132,
            queries=(1, 1, 1, 300, 5, 64),
            contexts=(3000, 900, 1, 300, 2000, 777),
        )
    )
