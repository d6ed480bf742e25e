"""Choose the attention backend for a machine and a model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import ModelLoadError
from ..kv_cache import KVCache
from .backend import AttentionBackend
from .torch_sdpa import TorchAttention

logger = logging.getLogger(__name__)

ENVIRONMENT_VARIABLE = "MYLLM_ATTENTION_BACKEND"


@dataclass(frozen=True, slots=True)
class AttentionNeeds:
    """Say what a model and an engine want of their backend.

    Attributes:
        features: names of fields of `AttentionCall` that some layer sets: window, softcap, sinks, alibi.
        max_num_seqs: sequences that a batch may have.
        max_model_len: tokens that a sequence may have.
    """

    features: frozenset[str]
    max_num_seqs: int
    max_model_len: int


class _UnfitError(Exception):
    """The backend cannot be used here; the message says why."""


def attention_backend_name() -> str:
    """Return the backend that the environment names; "auto": none."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or "auto"


def make_backend(cache: KVCache, needs: AttentionNeeds) -> AttentionBackend:
    """Choose the backend for where the cache lies and what the model needs.

    On a GPU: FlashAttention 3 where it is installed and fits, else our Triton kernels; plain torch, which is
    right everywhere, on a CPU and where Triton is missing. The environment variable `MYLLM_ATTENTION_BACKEND`
    names one of `BACKENDS` instead.

    Raises:
        ModelLoadError: the variable names no backend, or one that cannot be used here.
    """
    name = attention_backend_name()
    if name != "auto":
        if name not in BACKENDS:
            names = ", ".join(["auto", *BACKENDS])
            raise ModelLoadError(f"`{ENVIRONMENT_VARIABLE}` must be one of {names}; got {name!r}")
        try:
            return BACKENDS[name](cache, needs)
        except _UnfitError as error:
            raise ModelLoadError(
                f"`{ENVIRONMENT_VARIABLE}` is {name!r}, which cannot be used: {error}; unset it to have "
                "one chosen"
            ) from error
    for name in ("fa3", "triton") if cache.keys[0].is_cuda else ():
        try:
            return BACKENDS[name](cache, needs)
        except _UnfitError as error:
            level = logging.INFO if name == "fa3" else logging.WARNING
            logger.log(level, "The attention backend %r is not used: %s", name, error)
    return TorchAttention(cache)


def _torch(cache: KVCache, needs: AttentionNeeds) -> AttentionBackend:
    return TorchAttention(cache)


def _triton(cache: KVCache, needs: AttentionNeeds) -> AttentionBackend:
    try:
        import triton
    except ImportError as error:
        raise _UnfitError("the package `triton` is not installed (pip install triton)") from error
    if not cache.keys[0].is_cuda and not triton.knobs.runtime.interpret:
        raise _UnfitError("it needs a GPU, or Triton's interpreter (`TRITON_INTERPRET=1`)")
    from .triton_attention import TritonAttention

    return TritonAttention(cache, max_num_seqs=needs.max_num_seqs, max_model_len=needs.max_model_len)


def _fa3(cache: KVCache, needs: AttentionNeeds) -> AttentionBackend:
    try:
        import flash_attn_interface  # noqa: F401
        import triton  # noqa: F401 - stores the keys and values
    except ImportError as error:
        raise _UnfitError(f"`{error.name}` is not installed (pip install tokenspeed-fa3)") from error
    unsupported = needs.features - {"window"}
    odd = sorted({(k.shape[-1], v.shape[-1]) for k, v in zip(cache.keys, cache.values, strict=True)})
    if not cache.keys[0].is_cuda or torch.cuda.get_device_capability(cache.keys[0].device)[0] != 9:
        raise _UnfitError("it needs a GPU of the Hopper generation")
    if unsupported:
        raise _UnfitError(f"the model's attention has {', '.join(sorted(unsupported))}")
    if cache.keys[0].dtype not in (torch.bfloat16, torch.float16):
        raise _UnfitError("it computes in bfloat16 and float16 only")
    if any(key_dim != value_dim or key_dim > 256 or key_dim % 8 for key_dim, value_dim in odd):
        raise _UnfitError(f"the model's keys and values have the widths {odd}")
    from .fa3 import FlashAttention3

    return FlashAttention3(cache, max_num_seqs=needs.max_num_seqs, max_model_len=needs.max_model_len)


BACKENDS: dict[str, Callable[[KVCache, AttentionNeeds], AttentionBackend]] = {
    "torch": _torch,
    "triton": _triton,
    "fa3": _fa3,
}
