"""Check whole forward passes of the native model against transformers."""

from __future__ import annotations

import random

import pytest
import torch

from myllm_engine.kv_cache import KVCache
from myllm_engine.models.cpu.library import Format
from myllm_engine.models.cpu.model import NativeModel

from .conftest import FAMILIES, make_batch, tiny


def build(model, library, format=Format.F32, page_size=16, kv=torch.float32, threads=2, max_tokens=128):
    native = NativeModel(model, library, format=format, blocks=None, max_len=512)
    cache = KVCache(native.shapes, num_pages=80, page_size=page_size, dtype=kv, device=torch.device("cpu"))
    native.attach(cache, max_tokens=max_tokens, num_threads=threads)
    return native


@torch.inference_mode()
def expected_logits(model, ids):
    return model(torch.tensor([ids])).logits[0]


def random_ids(count, seed):
    generator = random.Random(seed)
    return [generator.randrange(203) for _ in range(count)]


def shuffled_pages(count, page_size, seed, among=range(1, 80)):
    return random.Random(seed).sample(list(among), -(-count // page_size))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("page_size", [16, 32, 8, 5])
def test_whole_prompt_equals_transformers(library, family, page_size):
    model = tiny(family)
    native = build(model, library, page_size=page_size)
    ids = random_ids(100, 1)
    batch = make_batch([(ids, 0, shuffled_pages(100, page_size, 2))], page_size)
    torch.testing.assert_close(native.forward(batch)[0], expected_logits(model, ids), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_and_decodes_in_mixed_batches_equal_transformers(library, family):
    model = tiny(family)
    native = build(model, library)
    lengths = [61, 17, 90, 33, 16]
    prompts = [random_ids(length, seed) for seed, length in enumerate(lengths)]
    expected = [expected_logits(model, ids) for ids in prompts]
    free = list(range(1, 80))
    random.Random(5).shuffle(free)
    pages = [[free.pop() for _ in range(-(-length // 16))] for length in lengths]
    done = [0] * len(prompts)
    generator = random.Random(7)
    while any(start < length for start, length in zip(done, lengths, strict=True)):
        parts, spans = [], []
        for index, length in enumerate(lengths):
            count = min(generator.choice([0, 1, 1, 2, 5, 16, 23]), length - done[index])
            if count:
                ids = prompts[index][done[index] : done[index] + count]
                parts.append((ids, done[index], pages[index]))
                spans.append((index, done[index], count))
                done[index] += count
        if not parts:
            continue
        logits, _ = native.forward(make_batch(parts, 16))
        want = torch.cat([expected[index][start : start + count] for index, start, count in spans])
        torch.testing.assert_close(logits, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("format", [Format.BF16, Format.Q8, Format.Q4])
@pytest.mark.parametrize("kv", [torch.float32, torch.bfloat16])
def test_other_forms_stay_near_transformers(library, format, kv):
    model = tiny("llama", initializer_range=0.1)
    ids = random_ids(60, 1)
    batch = make_batch([(ids, 0, shuffled_pages(60, 16, 2))], 16)
    logits = build(model, library, format, kv=kv).forward(batch)[0]
    expected = expected_logits(model, ids)
    relative = (logits - expected).norm() / expected.norm()
    assert relative < {Format.BF16: 0.01, Format.Q8: 0.03, Format.Q4: 0.2}[format]
    assert relative > 1e-5  # the format was used at all


@pytest.mark.parametrize("format", Format)
def test_a_tokens_logits_do_not_depend_on_batch_chunks_or_threads(library, format):
    model = tiny("qwen3")
    ids = random_ids(70, 1)
    table = shuffled_pages(70, 16, 2)
    whole = build(model, library, format, kv=torch.bfloat16, threads=1).forward(
        make_batch([(ids, 0, table)], 16)
    )[0]
    native = build(model, library, format, kv=torch.bfloat16, threads=3)
    other = random_ids(30, 9)
    rest = [page for page in range(1, 80) if page not in table]
    pieces = []
    for start, end in ((0, 1), (1, 18), (18, 40), (40, 41), (41, 42), (42, 70)):
        batch = make_batch([(ids[start:end], start, table), (other, 0, rest)], 16)
        pieces.append(native.forward(batch)[0][: end - start])
    assert (torch.cat(pieces) == whole).all()


@pytest.mark.parametrize("page_size", [16, 32, 8, 5])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_attention_over_bfloat16_pages_is_that_of_plain_vectors(library, plain, family, page_size):
    """With matrix tiles 16 bits stand for a query and for a weight, which costs next to nothing beside the cache's 8."""
    model = tiny(family)
    ids = random_ids(150, 1)
    table = shuffled_pages(150, page_size, 2)
    batches = [make_batch([(ids[a:b], a, table)], page_size) for a, b in ((0, 90), (90, 149), (149, 150))]
    ours, theirs, exact = (
        torch.cat([native.forward(batch)[0] for batch in batches])
        for native in (
            build(model, library, page_size=page_size, kv=torch.bfloat16),
            build(model, plain, page_size=page_size, kv=torch.bfloat16),
            build(model, library, page_size=page_size),
        )
    )
    rounding = (theirs - exact).norm()
    assert 1e-4 < rounding / exact.norm() < 2e-2
    assert (ours - theirs).norm() < 0.05 * rounding


@pytest.mark.parametrize("kv", [torch.float32, torch.bfloat16])
def test_what_lies_behind_the_last_position_does_not_matter(library, kv):
    model = tiny("llama")
    ids = random_ids(71, 1)
    batch = make_batch([(ids, 0, list(range(1, 6)))], 16)
    clean, dirty = build(model, library, kv=kv), build(model, library, kv=kv)
    for tensor in (*dirty._cache.keys, *dirty._cache.values):
        tensor.fill_(float("nan"))
    assert (clean.forward(batch)[0] == dirty.forward(batch)[0]).all()


def test_only_the_rows_asked_for_and_hidden_states(library):
    model = tiny("qwen2")
    native = build(model, library)
    ids = random_ids(20, 1)
    batch = make_batch([(ids, 0, [3, 1])], 16, all_rows=False)
    index = torch.tensor([19, 0, 7])
    logits, hidden = native.forward(batch, index)
    assert logits.shape == (1, 203)
    torch.testing.assert_close(logits[0], expected_logits(model, ids)[-1], atol=2e-4, rtol=1e-4)
    with torch.inference_mode():
        expected = model.model(torch.tensor([ids])).last_hidden_state[0, index]
    assert native.forward(batch)[1] is None
    torch.testing.assert_close(hidden, expected, atol=2e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="129 tokens in a step that may have 128"):
        native.forward(make_batch([(random_ids(129, 1), 0, list(range(1, 10)))], 16))


def test_scaled_rotary_positions(library):
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    model = tiny("llama", rope_parameters=rope)
    ids = random_ids(100, 1)
    batch = make_batch([(ids, 0, shuffled_pages(100, 16, 2))], 16)
    torch.testing.assert_close(
        build(model, library).forward(batch)[0], expected_logits(model, ids), atol=2e-4, rtol=1e-4
    )
