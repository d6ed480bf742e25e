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


# A tile is as many pixels wide and high: 4 x 4 patches, of which the connector joins 2 x 2, so 4 tokens.
TILE = 16
MARKS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
MARKS += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
# As SmolVLM's own.
VISION_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% elif part['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True)
class TinyVision:
    """A tiny model that sees, where it is saved, and transformers' own processor for it."""

    folder: Path
    model: Any
    processor: Any


def vision_tokenizer() -> Any:
    """Return a tokenizer of bytes, with the marks around images."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<eos>", *MARKS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<eos>", chat_template=VISION_TEMPLATE
    )


def vision_model(family: str, tokenizer: Any) -> Any:
    """Return a tiny model with random weights, in float32."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(2)
    special = {"pad_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, **special}
    vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        family,
        text_config={**text, "max_position_embeddings": 512, "bos_token_id": tokenizer.bos_token_id},
        vision_config={**vision, "image_size": TILE, "patch_size": 4},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Every answer of a freshly initialised model is one repeated token.
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TinyVision]:
    """Return a function that makes and saves a tiny model of a family that sees images."""
    from transformers import AutoImageProcessor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    kinds = {"idefics3": Idefics3ImageProcessorPil, "smolvlm": SmolVLMImageProcessorPil}
    made: dict[str, TinyVision] = {}

    def make(family: str) -> TinyVision:
        if family not in made:
            tokenizer = vision_tokenizer()
            model = vision_model(family, tokenizer)
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            sizes = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}
            kinds[family](**sizes).save_pretrained(folder)
            # SmolVLM's own processor writes the same text, and needs a package for videos besides.
            images = AutoImageProcessor.from_pretrained(folder, backend="pil")
            made[family] = TinyVision(
                folder, model, Idefics3Processor(images, vision_tokenizer(), image_seq_len=4)
            )
        return made[family]

    return make
