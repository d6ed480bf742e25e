"""Check that wrong configurations are refused in words."""

from __future__ import annotations

import pytest

from myllm_engine.config import EngineConfig


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ""}, "`model` must not be empty"),
        ({"dtype": "int8"}, "`dtype` must be one of .*'int8'"),
        ({"device": "tpu"}, "`device` must be .*'tpu'"),
        ({"max_num_seqs": 0}, "`max_num_seqs` must be an integer of 1 or more; got 0"),
        ({"page_size": 1.5}, "`page_size`"),
        ({"max_model_len": -1}, "`max_model_len`"),
        ({"kv_cache_memory": 0}, "`kv_cache_memory`"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 9}, r"`max_num_batched_tokens` \(8\)"),
        ({"max_queue": -1}, "`max_queue`"),
        ({"gpu_memory_utilization": 0.0}, "`gpu_memory_utilization`"),
    ],
)
def test_bad_values_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        EngineConfig(**fields)


def test_defaults_and_devices():
    assert EngineConfig().model == "smollm2"
    for device in ("auto", "cpu", "cuda", "cuda:3"):
        assert EngineConfig(device=device).device == device
