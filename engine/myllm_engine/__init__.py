"""Run language models: continuous batching over a paged KV cache, on transformers' own model code.

Importing this package imports neither torch nor transformers; the public names are loaded when first used.
Its one side effect is to set `OMP_WAIT_POLICY=PASSIVE` unless the variable is set: OpenMP reads it when torch
is loaded, and with spinning workers a CPU engine slows down by an order of magnitude as soon as anything else
runs.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Whether OpenMP was loaded without the policy, before we could set it; the engine then warns.
_wait_policy_came_late = "torch" in sys.modules and "OMP_WAIT_POLICY" not in os.environ
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from .async_engine import AsyncEngine
    from .config import EngineConfig, SpeculativeConfig
    from .constraint import Structured
    from .engine import Engine
    from .errors import (
        ContextLengthError,
        EngineDeadError,
        EngineError,
        InvalidRequestError,
        ModelLoadError,
        QueueFullError,
    )
    from .llm import LLM
    from .request import (
        CompletionOutput,
        Repetition,
        Request,
        RequestOutput,
        SamplingParams,
        TokenLogprob,
    )
    from .stats import EngineStats
    from .tokenizer import Tokenizer

__all__ = [
    "LLM",
    "AsyncEngine",
    "CompletionOutput",
    "ContextLengthError",
    "Engine",
    "EngineConfig",
    "EngineDeadError",
    "EngineError",
    "EngineStats",
    "InvalidRequestError",
    "ModelLoadError",
    "QueueFullError",
    "Repetition",
    "Request",
    "RequestOutput",
    "SamplingParams",
    "SpeculativeConfig",
    "Structured",
    "TokenLogprob",
    "Tokenizer",
]

_MODULES = {
    "LLM": "llm",
    "AsyncEngine": "async_engine",
    "CompletionOutput": "request",
    "ContextLengthError": "errors",
    "Engine": "engine",
    "EngineConfig": "config",
    "EngineDeadError": "errors",
    "EngineError": "errors",
    "EngineStats": "stats",
    "InvalidRequestError": "errors",
    "ModelLoadError": "errors",
    "QueueFullError": "errors",
    "Repetition": "request",
    "Request": "request",
    "RequestOutput": "request",
    "SamplingParams": "request",
    "SpeculativeConfig": "config",
    "Structured": "constraint",
    "TokenLogprob": "request",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {
            "torch",
            "transformers",
            "tokenizers",
            "numpy",
        }:
            raise
        raise ImportError(
            f"`{__name__}.{name}` needs the engine extra (`{error.name}` is not installed): "
            "pip install 'myllm-suite[engine]'"
        ) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
