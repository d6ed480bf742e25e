"""Check the engine on a GPU against `transformers.generate` on the same GPU, with all that only a GPU has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benchmarks._random_model import save_random_model
from torch import nn
from transformers import AutoModelForCausalLM

from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.request import Request, RequestOutput, SamplingParams

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

MAX_TOKENS = 12
SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,  # the usual 0.02 makes all answers one repeated token
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 16,
    },
    "gpt_oss": {"head_dim": 16, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            shape = {**SIZES, **FAMILIES[family]}
            save_random_model(made[family], family, shape, dtype=torch.float32, device="cpu")
        return made[family]

    return make


def make_engine(path: Path, **options) -> Engine:
    defaults = {
        "dtype": "float32",
        "device": DEVICE,
        "max_num_seqs": 20,
        "page_size": 4,
        "max_model_len": 256,
        "max_num_batched_tokens": 48,
        "kv_cache_memory": 1 << 26,
    }
    return Engine(EngineConfig(model=str(path), **{**defaults, **options}))


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = (1, 3, 7, 8, 9, 17, 40, 90, 100, 33, 2)
    return [torch.randint(3, 1000, (length,), generator=generator).tolist() for length in lengths]


def answers(engine: Engine, every: int = 0) -> dict[str, RequestOutput]:
    """Answer all prompts; with `every`, one more is added each so many steps."""
    params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, ignore_eos=True)
    todo = [
        Request(prompt_token_ids=ids, params=params, request_id=str(index))
        for index, ids in enumerate(prompts())
    ]
    results: dict[str, RequestOutput] = {}
    steps = 0
    while todo or engine.has_unfinished():
        if not every or steps % every == 0:
            for request in todo[: 1 if every else None]:
                engine.add_request(request)
                todo = todo[1:]
        steps += 1
        for output in engine.step():
            if output.request_id in results:
                results[output.request_id].extend(output)
            else:
                results[output.request_id] = output
    return results


def reference(path: Path, change: Callable[[nn.Module], None] = lambda model: None) -> list[list[int]]:
    # Eager: sdpa has neither softcap nor sinks.
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    change(model)
    model = model.eval().to(DEVICE)
    return [
        model.generate(
            torch.tensor([ids], device=DEVICE),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64, device=DEVICE),
            do_sample=False,
            min_new_tokens=MAX_TOKENS,
            max_new_tokens=MAX_TOKENS,
            eos_token_id=None,
        )[0, len(ids) :].tolist()
        for ids in prompts()
    ]


def check(results: dict[str, RequestOutput], expected: list[list[int]]) -> None:
    assert [results[str(index)].outputs[0].token_ids for index in range(len(expected))] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_transformers(folder, family):
    path = folder(family)
    expected = reference(path)
    engine = make_engine(path)
    check(answers(engine, every=1), expected)  # chunks, mixed with decodes
    check(answers(engine), expected)
    check(answers(make_engine(path, cuda_graphs=False), every=2), expected)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_decode_steps_are_captured(folder, family):
    assert make_engine(folder(family))._runner._graphs is not None
    assert make_engine(folder(family), cuda_graphs=False)._runner._graphs is None


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_each_backend_answers_alike(folder, backend, monkeypatch):
    monkeypatch.setenv("MYLLM_ATTENTION_BACKEND", backend)
    check(answers(make_engine(folder("gemma2"))), reference(folder("gemma2")))


def test_compiled_models_answer_alike(folder):
    check(answers(make_engine(folder("llama"), compile=True)), reference(folder("llama")))


def test_prefix_hits_and_preemption_change_nothing(folder):
    path = folder("llama")
    expected = reference(path)
    engine = make_engine(path)
    check(answers(engine), expected)
    again = answers(engine)
    check(again, expected)
    assert again["8"].num_cached_tokens >= 96
    page = 4 * 4 * 2 * 2 * 16 * 4  # tokens, layers, keys and values, heads, width, bytes
    cramped = make_engine(path, kv_cache_memory=40 * page, max_model_len=128, max_num_seqs=8)
    check(answers(cramped), expected)
    assert cramped.stats().num_preemptions > 0


@pytest.mark.parametrize("bits", [8, 4])
def test_low_bit_weights_answer_as_the_weights_that_they_stand_for(folder, bits):
    from myllm_engine.models.quantize_gpu import QuantizedLinear, group_size, quantize_groups

    def dequantise(model: nn.Module) -> None:
        for layer in model.model.modules():
            if type(layer) is nn.Linear:
                group = group_size(layer.in_features, bits)
                numbers, scale, zero = quantize_groups(layer.weight.detach(), bits, group)
                weight = numbers.unflatten(1, (-1, group)) * scale.unsqueeze(-1) + zero.unsqueeze(-1)
                layer.weight.data = weight.flatten(1)

    path = folder("llama")
    engine = make_engine(path, quantization=f"int{bits}")
    assert any(isinstance(module, QuantizedLinear) for module in engine._runner._model.modules())
    check(answers(engine), reference(path, dequantise))


def test_bfloat16_logprobs_are_near_transformers(folder):
    path = folder("llama")
    engine = make_engine(path, dtype="bfloat16")
    prompt = prompts()[7]
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=5)
    engine.add_request(Request(prompt_token_ids=prompt, params=params, request_id="x"))
    outputs: list[RequestOutput] = []
    while not outputs:  # a chunk gives none
        outputs = engine.step()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).to(DEVICE)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt], device=DEVICE)).logits[0, -1].float()
    expected = torch.log_softmax(logits, dim=-1)
    for token, value in outputs[0].outputs[0].logprobs[0].top:
        assert value == pytest.approx(float(expected[token]), abs=0.2)
