"""Hold the keys and values of all running sequences in pages of a fixed number of tokens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from .errors import ModelLoadError


class PagePool:
    """Hand out page numbers. Page 0 is never handed out: it takes the writes of padding rows.

    Args:
        num_pages: pages in all, page 0 included; at least 2.
        page_size: tokens a page holds.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2:
            raise ValueError(f"`num_pages` must be at least 2 (page 0 is reserved); got {num_pages!r}")
        self.page_size = page_size
        self.num_total = num_pages - 1
        self._free = deque(range(1, num_pages))
        self._is_free = bytearray([0] + [1] * (num_pages - 1))

    @property
    def num_free(self) -> int:
        """Return how many pages can be allocated."""
        return len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages so many tokens fill."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages; the caller has checked `num_free`."""
        if count > len(self._free):
            raise RuntimeError(f"{count} KV pages were asked for, {len(self._free)} are free")
        pages = [self._free.popleft() for _ in range(count)]
        for page in pages:
            self._is_free[page] = 0
        return pages

    def free(self, pages: SequenceOf[int]) -> None:
        """Give pages back; each must have been allocated."""
        for page in pages:
            if self._is_free[page] or page == 0:
                raise RuntimeError(f"KV page {page} was freed twice or never allocated")
            self._is_free[page] = 1
            self._free.append(page)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Say what one attention layer keeps per token.

    Keys and values may differ in width (as in DeepSeek's MLA).
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int


class KVCache:
    """Store keys and values, per layer `[num_pages, page_size, num_kv_heads, dim]`.

    Memory is zeroed: padding reads it, and a weight of zero times whatever NaN lay there would still be NaN.

    Args:
        layers: the shape of each attention layer, by `layer_idx`.
        num_pages: as in `PagePool`.
        page_size: tokens a page holds.
        dtype: of keys and values.
        device: where they lie.

    Raises:
        ModelLoadError: there is not as much memory.
    """

    def __init__(
        self,
        layers: SequenceOf[LayerShape],
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_size = page_size
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        for layer in layers:
            for tensors, dim in ((self.keys, layer.key_dim), (self.values, layer.value_dim)):
                shape = (num_pages, page_size, layer.num_kv_heads, dim)
                try:
                    tensors.append(_zeros(shape, dtype, device))
                except (RuntimeError, MemoryError) as error:  # torch's own is a RuntimeError
                    size = num_pages * page_bytes(layers, page_size, dtype)
                    raise ModelLoadError(
                        f"The KV cache of {size} bytes does not fit into the memory of {str(device)!r}: set "
                        f"`kv_cache_memory`, or lower `max_num_seqs` or `max_model_len` ({error})"
                    ) from error


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch writes its zeros; numpy takes them from the system, which hands memory out as it is first used.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def page_bytes(layers: SequenceOf[LayerShape], page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one page takes, over all layers."""
    per_token = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    return per_token * page_size * dtype.itemsize
