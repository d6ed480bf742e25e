"""Choose the attention backend for a machine."""

from __future__ import annotations

from ..kv_cache import KVCache
from .backend import AttentionBackend
from .torch_sdpa import TorchAttention


def make_backend(cache: KVCache) -> AttentionBackend:
    """Choose the backend for where the cache lies.

    Plain torch is right on every device, and the only one so far.
    """
    return TorchAttention(cache)
