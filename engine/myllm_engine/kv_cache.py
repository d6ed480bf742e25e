"""Hold the keys and values of all running sequences in pages of a fixed number of tokens."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch

from .errors import ModelLoadError


class PagePool:
    """Hand out page numbers, and remember what whole pages hold.

    A page belongs to as many sequences as hold a reference to it. One that nobody holds is free, but keeps
    what it holds until it is handed out again, the one that was given back longest ago first: a sequence that
    begins with the same tokens finds it by its key (see `page_keys`). Page 0 is never handed out: it takes
    the writes of padding rows.

    Args:
        num_pages: pages in all, page 0 included; at least 2.
        page_size: tokens a page holds.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2:
            raise ValueError(f"`num_pages` must be at least 2 (page 0 is reserved); got {num_pages!r}")
        self.page_size = page_size
        self.num_total = num_pages - 1
        self._free = OrderedDict.fromkeys(range(1, num_pages))  # the next to be handed out first
        self._holders = [0] * num_pages
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Return how many pages can be allocated."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Return how many pages can be found by their keys."""
        return len(self._page_of)

    def pages_for(self, num_tokens: int) -> int:
        """Return how many pages so many tokens fill."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages; the caller has checked `num_free`."""
        if count > len(self._free):
            raise RuntimeError(f"{count} KV pages were asked for, {len(self._free)} are free")
        pages = [self._free.popitem(last=False)[0] for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
            self._forget(page)
        return pages

    def share(self, pages: SequenceOf[int]) -> None:
        """Take another reference to each page: of another sequence, or free and found by its key."""
        for page in pages:
            if self._holders[page] == 0:
                del self._free[page]
            self._holders[page] += 1

    def free(self, pages: SequenceOf[int]) -> None:
        """Give a reference to each page back, of one sequence's pages in their order."""
        # The last pages first: a beginning is of use to more sequences than what follows it.
        for page in reversed(pages):
            if page == 0 or self._holders[page] == 0:
                raise RuntimeError(f"KV page {page} was freed twice or never allocated")
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free[page] = None
                if page not in self._key_of:
                    self._free.move_to_end(page, last=False)

    def find(self, keys: SequenceOf[bytes]) -> list[int]:
        """Return the pages of the longest beginning of `keys` that is there; takes no reference."""
        pages = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def count_free(self, pages: SequenceOf[int]) -> int:
        """Return how many of these pages nobody holds."""
        return sum(self._holders[page] == 0 for page in pages)

    def remember(self, page: int, key: bytes) -> None:
        """Let a page that is held be found by its key; a page that has this key already stays the one."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def _forget(self, page: int) -> None:
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]


def page_keys(token_ids: SequenceOf[int], page_size: int, *, salt: bytes, keys: list[bytes]) -> None:
    """Extend `keys` to one per whole page of `token_ids`.

    A key stands for all tokens up to the page's end, as it is chained: a hash (BLAKE2b, 128 bits) of the
    key before it, the first one of `salt`, and of the page's tokens. Pages of one key hold the same values.
    """
    for index in range(len(keys), len(token_ids) // page_size):
        tokens = np.array(token_ids[index * page_size : (index + 1) * page_size], dtype=np.int64)
        before = keys[index - 1] if index else hashlib.blake2b(salt, digest_size=16).digest()
        keys.append(hashlib.blake2b(before + tokens.tobytes(), digest_size=16).digest())


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

    def copy_page(self, source: int, target: int) -> None:
        """Copy one page, in all layers."""
        for tensor in (*self.keys, *self.values):
            tensor[target].copy_(tensor[source])


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch writes its zeros; numpy takes them from the system, which hands memory out as it is first used.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def page_bytes(layers: SequenceOf[LayerShape], page_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that one page takes, over all layers."""
    per_token = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    return per_token * page_size * dtype.itemsize
