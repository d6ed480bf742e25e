"""Share loaded models between the engine's tests: loading is the slow part."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.models.source import resolve_model
from myllm_engine.tokenizer import Tokenizer, load_tokenizer

MAX_TOKENS = 10

ENGLISH = "The lighthouse keeper climbed the stairs every evening and counted the steps, as his father had done before him. "
PROMPTS = [
    "A",
    "The",
    "\n",
    "Once upon a time",
    "The capital of France is",
    "Q: What is 12 + 30?\nA:",
    "1, 2, 3, 4, 5,",
    "3.14159265358979",
    "def fibonacci(n):\n    ",
    "import numpy as np\n\ndef softmax(x):\n    return",
    "SELECT name, COUNT(*) FROM users WHERE",
    "<html>\n<head>\n<title>",
    '{"name": "Ada", "born": 1815, "langu',
    "for (int i = 0; i < n; ++i) {",
    "Le petit chat est",
    "Die Würde des Menschen ist",
    "El perro come una manzana y",
    "Привет, как дела? Я",
    "今日はとても良い天気です。",
    "今天天气很好，我们去",
    "مرحبا كيف حالك",
    "नमस्ते दुनिया",
    "Καλημέρα κόσμε",
    "안녕하세요 세계",
    "😀😃😄 emoji are 🎉",
    "👩‍👩‍👧‍👦 family and 🇩🇪 flag",
    "   leading spaces and\ttabs",
    'He said: "Don\'t!" — and left…',
    ENGLISH * 2,
    ENGLISH * 5 + "One night",
    ENGLISH * 9 + "Then the storm came and",
    "# Notes\n\n" + "\n".join(f"- item {i}: value {i * i}" for i in range(40)),
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [{"role": "user", "content": "Name three colours."}],
    [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Is water wet?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "And fire?"},
    ],
    [{"role": "user", "content": "Write a haiku about the sea. " + ENGLISH * 3}],
]


@dataclass(frozen=True)
class Reference:
    """One prompt with what `transformers.generate` answers, greedily in float32."""

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: torch.Tensor  # [len(token_ids), vocab_size], log-softmax of the unmodified logits


def greedy_reference(model: Any, prompt_token_ids: list[int], max_tokens: int = MAX_TOKENS) -> Reference:
    """Generate with transformers' own loop, cache and attention."""
    result = model.generate(
        torch.tensor([prompt_token_ids]),
        attention_mask=torch.ones(1, len(prompt_token_ids), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=max_tokens,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return Reference(
        prompt_token_ids,
        result.sequences[0, len(prompt_token_ids) :].tolist(),
        torch.log_softmax(torch.cat(result.logits).float(), dim=-1),
    )


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return the bundled model's tokenizer."""
    return load_tokenizer(EngineConfig(), resolve_model("smollm2"))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """Return the bundled model in float32."""
    return Engine(EngineConfig(dtype="float32", device="cpu", max_num_seqs=64))


@pytest.fixture(scope="session")
def dense() -> Any:
    """Return the bundled model of transformers' own: its GGUF reading, in dequantised float32 weights."""
    from transformers import AutoModelForCausalLM, GgufConfig

    source = resolve_model("smollm2")
    return AutoModelForCausalLM.from_pretrained(
        source.path,
        gguf_file=source.gguf_file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )


@pytest.fixture(scope="session")
def references(dense: Any, tokenizer: Tokenizer) -> list[Reference]:
    """Answer all prompts with transformers alone: its own GGUF reading, attention, cache and loop."""
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    prompts += [tokenizer.encode_chat(messages) for messages in CHATS]
    return [greedy_reference(dense, prompt) for prompt in prompts]


@pytest.fixture(scope="session")
def cramped_engine() -> Engine:
    """Return the bundled model in float32 with chunks of 48 tokens and a KV cache of 504 tokens."""
    page = 30 * 3 * 64 * 2 * 4 * 8
    return Engine(
        EngineConfig(
            dtype="float32",
            device="cpu",
            max_num_seqs=40,
            max_num_batched_tokens=48,
            page_size=8,
            kv_cache_memory=64 * page,
        )
    )


@pytest.fixture(scope="session")
def async_engine() -> Iterator[AsyncEngine]:
    """Return the bundled model behind an engine thread."""
    engine = AsyncEngine(EngineConfig(dtype="float32", device="cpu", max_num_seqs=8))
    yield engine
    engine.close()


# Families, and what their tiny models have besides the common sizes; `models/test_families.py` has all of them.
TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "gpt2": {},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
        "query_pre_attn_scalar": 16,
    },
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Callable[[str], Path]:
    """Return a function that saves a small model of a family, with random weights, and returns its folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            torch.manual_seed(1)
            sizes = {
                "vocab_size": tokenizer.vocab_size,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "max_position_embeddings": 512,
                "initializer_range": 0.3,  # the usual 0.02 makes all answers one repeated token
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 2,
            }
            config = AutoConfig.for_model(family, **sizes, **TINY[family])
            folder = tmp_path_factory.mktemp(family)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            tokenizer._tokenizer.save_pretrained(folder)
            made[family] = folder
        return made[family]

    return make
