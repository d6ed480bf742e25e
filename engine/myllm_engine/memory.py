"""Decide how many KV pages an engine gets."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from .config import EngineConfig
from .errors import ModelLoadError

logger = logging.getLogger(__name__)

# Without `kv_cache_memory` a CPU engine has room for `max_num_seqs` sequences of this many tokens...
_CPU_TOKENS_PER_SEQ = 2048
# ... as long as that is no more than this share of the memory that is available when it starts.
_CPU_MEMORY_SHARE = 0.25


def num_pages(
    config: EngineConfig, *, page_bytes: int, max_model_len: int, device: torch.device, peak_bytes: int
) -> int:
    """Return how many KV pages to allocate, the reserved one included.

    Args:
        config: of the engine.
        page_bytes: bytes of a page over all layers.
        max_model_len: tokens of the longest sequence.
        device: where the pages lie.
        peak_bytes: what a forward pass needs on top of what is allocated now (GPU only).

    Raises:
        ModelLoadError: `kv_cache_memory` is more than there is.
    """
    size = config.page_size
    longest = -(-max_model_len // size)
    # More than every sequence at full length can never be used.
    useful = config.max_num_seqs * longest + 1
    if config.kv_cache_memory is not None:
        count = max(min(useful, config.kv_cache_memory // page_bytes), 2)
        # The system would promise memory that it does not have, and end the process when it is used.
        if device.type == "cpu" and count * page_bytes > available_memory():
            raise ModelLoadError(
                f"The KV cache would take {count * page_bytes} bytes, and {available_memory()} are free: "
                f"lower `kv_cache_memory` ({config.kv_cache_memory}), `max_num_seqs` ({config.max_num_seqs}) "
                f"or `max_model_len` ({max_model_len})"
            )
        return count
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        budget = free - total * (1.0 - config.gpu_memory_utilization) - peak_bytes
    else:
        budget = available_memory() * _CPU_MEMORY_SHARE
        moderate = -(-min(_CPU_TOKENS_PER_SEQ, max_model_len) // size)
        useful = max(config.max_num_seqs * moderate, longest) + 1
    return max(min(useful, int(budget // page_bytes)), 2)


def free_memory(device: torch.device) -> int:
    """Return the bytes that can be allocated on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def available_memory() -> int:
    """Return the bytes of main memory that can be used without swapping."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
