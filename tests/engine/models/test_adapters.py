"""Check the slopes of ALiBi; what the adapters compute is checked family by family in `test_families`."""

from __future__ import annotations

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from myllm_engine.models.adapters import alibi_slopes


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 16, 25, 71, 112])
def test_slopes_equal_those_of_bloom_and_mpt(heads):
    bloom = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    mpt = -build_mpt_alibi_tensor(heads, 2)[:, 0, 0]
    torch.testing.assert_close(alibi_slopes(heads), bloom, rtol=1e-5, atol=0)
    torch.testing.assert_close(alibi_slopes(heads), mpt, rtol=1e-5, atol=0)
