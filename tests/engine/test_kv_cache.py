"""Check the KV cache's memory; the pool's pages are checked by the scheduler's tests."""

from __future__ import annotations

import pytest
import torch

from myllm_engine.errors import ModelLoadError
from myllm_engine.kv_cache import KVCache, LayerShape, page_bytes

LAYERS = [LayerShape(num_kv_heads=2, key_dim=8, value_dim=4)] * 3


def make_cache(num_pages: int) -> KVCache:
    return KVCache(LAYERS, num_pages=num_pages, page_size=4, dtype=torch.float32, device=torch.device("cpu"))


def test_pages_are_zeroed_and_as_large_as_said():
    cache = make_cache(5)
    tensors = cache.keys + cache.values
    assert [tuple(tensor.shape) for tensor in cache.keys] == [(5, 4, 2, 8)] * 3
    assert [tuple(tensor.shape) for tensor in cache.values] == [(5, 4, 2, 4)] * 3
    assert sum(tensor.numel() * tensor.itemsize for tensor in tensors) == 5 * page_bytes(
        LAYERS, 4, torch.float32
    )
    assert not any(tensor.any() for tensor in tensors)


def test_too_large_a_cache_says_what_to_do():
    with pytest.raises(ModelLoadError, match="does not fit into the memory of 'cpu': set `kv_cache_memory`"):
        make_cache(2**44)
