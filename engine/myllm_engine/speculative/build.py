"""Build what `SpeculativeConfig` asks for."""

from __future__ import annotations

import dataclasses

import torch

from ..config import EngineConfig
from ..errors import ModelLoadError
from ..memory import free_memory
from ..models.load import load_model
from ..models.source import resolve_model
from ..runner import ModelRunner
from ..tokenizer import Tokenizer, load_tokenizer
from .control import Proposer, Speculator
from .draft import DraftProposer
from .ngram import NgramProposer

# Of free memory, or of `kv_cache_memory`, for the draft model's keys and values: its layers are few and
# narrow.
_DRAFT_SHARE = 0.1


def make_speculator(
    config: EngineConfig, tokenizer: Tokenizer, *, device: torch.device, dtype: torch.dtype, budget: int
) -> Speculator | None:
    """Return what proposes tokens for an engine, or None when it shall not speculate.

    Args:
        config: of the engine.
        tokenizer: of the engine's model.
        device: where a draft model runs.
        dtype: of a draft model.
        budget: tokens of one forward pass of a draft model.

    Raises:
        ModelLoadError: the draft model cannot be loaded, or has another vocabulary.
    """
    wanted = config.speculative
    if wanted is None:
        return None
    proposer: Proposer
    if wanted.model is None:
        proposer = NgramProposer(min_ngram=wanted.min_ngram, max_ngram=wanted.max_ngram)
    else:
        proposer = _make_draft(config, wanted.model, tokenizer, device=device, dtype=dtype, budget=budget)
    return Speculator(proposer, wanted.num_tokens)


def _make_draft(
    config: EngineConfig,
    model: str,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    dtype: torch.dtype,
    budget: int,
) -> DraftProposer:
    memory = config.kv_cache_memory or free_memory(device)
    own = dataclasses.replace(
        config,
        model=model,
        tokenizer=None,
        revision=None,
        chat_template=None,
        max_model_len=None,
        kv_cache_memory=max(1, int(memory * _DRAFT_SHARE)),
        speculative=None,
        lora_adapters={},
        max_loras=0,
        tensor_parallel_size=1,
    )
    source = resolve_model(model)
    loaded = load_model(own, source, device=device, dtype=dtype)
    theirs = load_tokenizer(own, source).backend.get_vocab(with_added_tokens=True)
    if theirs != tokenizer.backend.get_vocab(with_added_tokens=True):
        raise ModelLoadError(
            f"The draft model {model!r} has another vocabulary than {config.model!r}: its tokens mean "
            "something else there; choose a smaller model of the same family"
        )
    runner = ModelRunner(loaded, own, max_num_batched_tokens=budget)
    return DraftProposer(runner, max_num_batched_tokens=budget, eos_token_ids=tokenizer.eos_token_ids)
