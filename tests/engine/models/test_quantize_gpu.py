"""Check low-bit linears against plain arithmetic: on the GPU, or else through Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from myllm_engine.errors import ModelLoadError

pytest.importorskip("triton")
from myllm_engine.models.quantize_gpu import QuantizedLinear, quantize_groups, quantize_linears

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_eight_bits_are_within_half_a_step_of_each_weight():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    numbers, scale, zero = quantize_groups(weight, 8, 32)
    assert numbers.dtype == torch.int8
    assert numbers.abs().max() == 127
    assert not zero.any()
    back = numbers.unflatten(1, (2, 32)).float() * scale.unsqueeze(-1)
    assert (
        (back.flatten(1) - weight).abs() <= weight.unflatten(1, (2, 32)).abs().amax(-1).max() / 254 + 1e-6
    ).all()
    for row in range(5):
        for group in range(2):
            part = weight[row, 32 * group : 32 * group + 32]
            assert scale[row, group] == pytest.approx(float(part.abs().max()) / 127)


def test_four_bits_meet_the_extremes_of_each_group_and_a_constant_one():
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight[1, :32] = 0.25
    numbers, scale, zero = quantize_groups(weight, 4, 32)
    assert (numbers.min(), numbers.max()) == (0, 15)
    back = (numbers.unflatten(1, (2, 32)) * scale.unsqueeze(-1) + zero.unsqueeze(-1)).flatten(1)
    torch.testing.assert_close(back[1, :32], weight[1, :32])
    groups, back_groups = weight.unflatten(1, (2, 32)), back.unflatten(1, (2, 32))
    torch.testing.assert_close(back_groups.amin(-1), groups.amin(-1))
    torch.testing.assert_close(back_groups.amax(-1), groups.amax(-1))
    step = (groups.amax(-1) - groups.amin(-1)).unsqueeze(-1) / 15
    assert ((groups - back_groups).abs() <= step / 2 + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "bias", "dtype"), [(1, True, torch.float32), (35, False, torch.float16)])
def test_the_kernel_multiplies_by_the_dequantised_weight(bits, rows, bias, dtype):
    torch.manual_seed(1)
    plain = nn.Linear(128, 80, bias=bias).to(DEVICE, dtype)  # 80: not a whole number of blocks
    layer = QuantizedLinear(plain, bits, 32)
    # One row would be enough to see a swapped half or a scale of the wrong group.
    numbers, scale, zero = quantize_groups(plain.weight.detach().cpu(), bits, 32)
    weight = numbers.unflatten(1, (4, 32)) * scale.unsqueeze(-1) + zero.unsqueeze(-1)
    x = torch.randn(1, rows, 128, dtype=dtype, device=DEVICE)
    expected = x.double().cpu() @ weight.flatten(1).double().T
    if bias:
        expected = expected + plain.bias.double().cpu()
    tolerance = 1e-5 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(layer(x).double().cpu(), expected, atol=tolerance, rtol=tolerance)
    many = torch.randn(200, 128, dtype=dtype, device=DEVICE)
    expected = nn.functional.linear(many, weight.flatten(1).to(DEVICE, dtype), plain.bias)
    torch.testing.assert_close(layer(many), expected, atol=tolerance, rtol=tolerance)


class Model(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Sequential(nn.Linear(width, 40))])
        self.odd = nn.Linear(40, 8)
        self.head = nn.Linear(8, 10)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.odd(self.layers[1](self.layers[0](self.embed(ids)))))


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (4, 0.15)])
def test_a_model_is_quantised_but_for_its_head_and_odd_layers(bits, error, caplog):
    torch.manual_seed(2)
    model = Model(64).to(DEVICE)
    plain = copy.deepcopy(model)
    assert quantize_linears(model, bits) == 2
    assert "odd" in caplog.text
    assert type(model.head) is type(model.odd) is nn.Linear
    ids = torch.arange(10, device=DEVICE)
    expected = plain(ids)
    assert 0 < (model(ids) - expected).norm() / expected.norm() < error


def test_a_model_without_a_layer_to_quantise_is_refused():
    with pytest.raises(ModelLoadError, match="'int4' applies to no layer"):
        quantize_linears(Model(20), 4)
