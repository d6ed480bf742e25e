"""Check that fused models compute what they computed before, with fewer products."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from myllm_engine.models.fuse import FusedLinear, fuse_linears

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def build(family: str, **more) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **more)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():  # biases are zero otherwise
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    ("family", "groups"),
    [
        ("llama", 4),
        ("mistral", 4),
        ("qwen2", 4),  # biases on query, key and value
        ("qwen3", 4),  # norms between projection and attention
        ("gemma2", 4),
        ("olmo2", 4),
        ("stablelm", 4),
        ("starcoder2", 2),  # no gate
        ("phi3", 0),  # fused by its authors
        ("gpt_neox", 0),
    ],
)
def test_fused_models_give_the_same_logits(family, groups):
    model = build(family)
    ids = torch.randint(0, 96, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(ids).logits
        plain = sum(type(module) is nn.Linear for module in model.modules())
        assert fuse_linears(model) == groups
        fused = sum(type(module) is nn.Linear for module in model.modules())
        assert (fused < plain) == (groups > 0)
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(ids[:, :3]).logits, model(ids).logits[:, :3], atol=1e-5, rtol=1e-5)


def test_each_group_is_one_product():
    model = build("llama")
    fuse_linears(model)
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.together is attention.k_proj.together is attention.v_proj.together
    calls = []
    attention.q_proj.together.linear.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        model(torch.arange(5)[None])
    assert len(calls) == 1


def test_siblings_that_are_given_different_inputs_stay_right():
    model = build("qwen2")
    attention = model.model.layers[0].self_attn
    plain = {name: getattr(attention, name) for name in ("q_proj", "k_proj", "v_proj")}
    fuse_linears(model)
    first, second = torch.randn(2, 3, 32)
    for name, x in (
        ("q_proj", first),
        ("k_proj", second),
        ("q_proj", first),
        ("q_proj", first),
        ("v_proj", second),
    ):
        torch.testing.assert_close(getattr(attention, name)(x), plain[name](x))
    for name, layer in plain.items():
        assert torch.equal(getattr(attention, name).weight, layer.weight)


def test_what_is_wrapped_differs_or_is_to_be_kept_stays_apart():
    class Wrapped(nn.Linear):
        """As an adapter's: more than the product."""

    model = build("llama")
    first, second = model.model.layers
    first.self_attn.v_proj = Wrapped(32, 16, bias=False)
    second.mlp.up_proj = nn.Linear(32, 48, bias=True)
    assert fuse_linears(model, keep=lambda name: name == "model.layers.1.self_attn") == 1
    fused = [name for name, module in model.named_modules() if isinstance(module, FusedLinear)]
    assert fused == ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]
