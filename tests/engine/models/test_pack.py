"""Check packed linears against the plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from myllm_engine.models.pack import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this CPU computes no bfloat16 products",
)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 32, 200])
@torch.inference_mode()
def test_packed_equals_plain(bias, rows):
    torch.manual_seed(rows)
    model = nn.Sequential(nn.Linear(96, 160, bias=bias), nn.Linear(160, 40, bias=bias)).to(torch.bfloat16)
    hidden = torch.randn(1, rows, 96, dtype=torch.bfloat16)
    strided = torch.randn(rows, 1, 192, dtype=torch.bfloat16).transpose(0, 1)[..., ::2]
    expected = [model(hidden), model(strided)]
    assert pack_linears(model) == 2
    assert all(isinstance(layer, PackedLinear) for layer in model)
    for ours, plain in zip([model(hidden), model(strided)], expected, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-2, rtol=2e-2)


def test_other_layers_stay():
    model = nn.Sequential(nn.Linear(8, 8), nn.Embedding(4, 8).to(torch.bfloat16), nn.LayerNorm(8))
    assert pack_linears(model) == 0
    assert type(model[0]) is nn.Linear
