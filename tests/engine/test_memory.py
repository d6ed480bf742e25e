"""Check how many KV pages an engine gets."""

from __future__ import annotations

import pytest
import torch

from myllm_engine import memory
from myllm_engine.config import EngineConfig
from myllm_engine.errors import ModelLoadError

GIB = 2**30


def pages(**fields) -> int:
    config = EngineConfig(max_num_seqs=4, page_size=16, **fields)
    return memory.num_pages(
        config, page_bytes=GIB, max_model_len=100, device=torch.device("cpu"), peak_bytes=0
    )


def test_the_memory_asked_for_is_taken_as_far_as_it_is_useful(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 50 * GIB)
    assert pages(kv_cache_memory=10 * GIB) == 10
    assert pages(kv_cache_memory=1) == 2  # the least that works
    # Four sequences of 100 tokens fill 7 pages each; one page is reserved.
    assert pages(kv_cache_memory=100 * 2**40) == 29


def test_more_memory_than_there_is_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 20 * GIB)
    assert pages(kv_cache_memory=20 * GIB) == 20
    with pytest.raises(
        ModelLoadError, match=rf"{21 * GIB} bytes, and {20 * GIB} are free.*`kv_cache_memory`"
    ):
        pages(kv_cache_memory=21 * GIB)
