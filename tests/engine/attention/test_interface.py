"""Check what transformers' models get as their attention function."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from myllm_engine.attention.backend import AttentionCall
from myllm_engine.attention.interface import paged_attention
from myllm_engine.context import forward_context


class Recorder:
    """Answer with something that depends on every tensor, and keep the calls."""

    capturable = False

    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def plan(self, batch) -> None:
        """Do nothing."""

    def run(self, call: AttentionCall) -> torch.Tensor:
        self.calls.append(call)
        sinks = 0.0 if call.sinks is None else call.sinks.view(1, -1, 1)
        total = call.query.sum(-1).t().unsqueeze(-1) + call.key.sum() + call.value.sum() * call.scale
        return (total + sinks).expand(-1, -1, call.value.shape[-1])


def layer(index: int) -> nn.Module:
    module = nn.Module()
    module.layer_idx = index
    return module


@pytest.mark.parametrize("options", [{}, {"sliding_window": 7, "softcap": 3.0, "scaling": 0.5}])
def test_compiled_models_reach_the_backend_with_all_that_eager_ones_do(options):
    module, recorder = layer(3), Recorder()
    sinks = torch.randn(4)

    def attend(query, key, value):
        return paged_attention(module, query, key, value, None, s_aux=sinks, **options)[0] * 2

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (5, 9, 2):
        query, key, value = (
            torch.randn(1, 4, tokens, 8),
            torch.randn(1, 2, tokens, 8),
            torch.randn(1, 2, tokens, 6),
        )
        with torch.inference_mode(), forward_context(recorder):
            expected, actual = attend(query, key, value), compiled(query, key, value)
        assert actual.shape == (1, tokens, 4, 6)
        torch.testing.assert_close(actual, expected)
    eager, traced = recorder.calls[-2:]
    for name in ("layer_idx", "scale", "window", "softcap"):
        assert getattr(eager, name) == getattr(traced, name)
    assert torch.equal(traced.sinks, sinks)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"is_causal": False}, "lets tokens attend to later ones"),
        ({"position_bias": torch.zeros(1)}, "changes its attention by `position_bias`"),
    ],
)
def test_what_would_be_left_out_is_refused(options, reason):
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(NotImplementedError, match=f"`Module` {reason}"):
        paged_attention(layer(0), query, query, query, None, **options)
