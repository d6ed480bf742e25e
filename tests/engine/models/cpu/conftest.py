"""Share the compiled library and small models between the CPU library's tests."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from myllm_engine.models.cpu import build
from myllm_engine.models.cpu.library import declare, native_library

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "mistral": {"num_key_value_heads": 1, "head_dim": 32, "sliding_window": 9},
    "qwen2": {
        "num_key_value_heads": 2,
        "sliding_window": 7,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "qwen3": {"num_key_value_heads": 4, "head_dim": 48},
}


@pytest.fixture(scope="session")
def library():
    """Return the native library; without a compiler there is nothing to test."""
    library = native_library()
    if library is None:
        pytest.skip("no C compiler")
    return library


@pytest.fixture(scope="session")
def plain(library):
    """Return the library compiled without matrix tiles."""
    if build.platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only x86-64 has matrix tiles to be switched off")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYLLM_CPU_FLAGS", "-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16")
        other = ctypes.CDLL(str(build.build_library()))
    declare(other)
    return other


def tiny(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Return a small random transformers model whose sizes are no multiples of what kernels like."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    options = {
        "vocab_size": 203,
        "hidden_size": 72,
        "intermediate_size": 90,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(family, **{**options, **FAMILIES[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # ones and zeros would hide that they are left out
            torch.nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


@dataclass(frozen=True)
class StepBatch:
    """What the library reads of a `Batch`."""

    input_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    query_lens: list[int]
    context_lens: list[int]
    page_tables: list[list[int]]
    logits_index: torch.Tensor


def make_batch(
    parts: list[tuple[list[int], int, list[int]]], page_size: int, *, all_rows: bool = True
) -> StepBatch:
    """Lay out (new tokens, tokens before them, pages) of each sequence; logits of all tokens, or of the last."""
    ids, positions, slots, rows = [], [], [], []
    for tokens, start, pages in parts:
        places = range(start, start + len(tokens))
        ids += tokens
        positions += places
        slots += [pages[place // page_size] * page_size + place % page_size for place in places]
        rows.append(len(ids) - 1)
    return StepBatch(
        torch.tensor(ids),
        torch.tensor(positions),
        torch.tensor(slots),
        [len(tokens) for tokens, _, _ in parts],
        [start + len(tokens) for tokens, start, _ in parts],
        [pages for _, _, pages in parts],
        torch.arange(len(ids)) if all_rows else torch.tensor(rows),
    )
