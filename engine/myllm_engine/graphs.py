"""Replay the decode step as a CUDA graph, so that launching its kernels costs nothing.

A graph repeats the same kernels on the same addresses. Batches are therefore padded up to one of a few sizes
and copied to fixed places; padding rows are sequences of one token in page 0, which belongs to nobody.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

from .attention.backend import AttentionBackend
from .batch import Batch, build_batch

logger = logging.getLogger(__name__)

Replay = Callable[[], None]

# What the driver keeps for one captured graph of some thousand kernels.
_BYTES_PER_GRAPH = 16 << 20


def bucket_sizes(max_num_seqs: int) -> list[int]:
    """Return the batch sizes to capture: 1, 2, 4, 8, then every 16th, and the largest."""
    sizes = [size for size in (1, 2, 4, 8, *range(16, max_num_seqs, 16)) if size < max_num_seqs]
    return [*sizes, max_num_seqs]


def bucket_for(sizes: Sequence[int], count: int) -> int | None:
    """Return the smallest of the sorted `sizes` that holds `count` sequences; None: they are too many."""
    place = bisect_left(sizes, count)
    return sizes[place] if place < len(sizes) else None


def reserve_bytes(max_num_seqs: int, vocab_size: int, dtype: torch.dtype, activation_bytes: int) -> int:
    """Return the bytes that capturing takes beyond what eager steps do.

    Graphs keep a pool of memory of their own, which all sizes share, and one buffer of logits.

    Args:
        max_num_seqs: the largest size.
        vocab_size: width of the logits.
        dtype: of the logits.
        activation_bytes: what a forward pass over as many tokens takes.
    """
    logits = max_num_seqs * vocab_size * dtype.itemsize
    return activation_bytes + logits + len(bucket_sizes(max_num_seqs)) * _BYTES_PER_GRAPH


class StaticInputs:
    """Keep the inputs of a decode step at fixed addresses.

    Args:
        size: sequences that a step may have.
        device: where they lie.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._tables = torch.zeros(3, size, dtype=torch.int64, device=device)
        self._rows = torch.arange(size, device=device)

    def fill(self, batch: Batch, size: int) -> Batch:
        """Return `batch`, decodes only, padded to `size` sequences, with its tensors in the fixed places.

        Every row asks for logits, so that row `i` is what the batch's token `i` leads to.
        """
        count = batch.num_decodes
        if size > count:
            self._tables[:, count:size].zero_()
        for target, source in zip(self._tables, (batch.input_ids, batch.positions, batch.slots), strict=True):
            target[:count].copy_(source, non_blocking=True)
        padding = size - count
        return dataclasses.replace(
            batch,
            input_ids=self._tables[0, :size],
            positions=self._tables[1, :size],
            slots=self._tables[2, :size],
            query_lens=[1] * size,
            context_lens=[*batch.context_lens, *[1] * padding],
            page_tables=[*batch.page_tables, *[[0]] * padding],
            num_decodes=size,
            logits_index=self._rows[:size],
        )


class DecodeGraphs:
    """Run decode batches through one captured graph per size.

    Args:
        run: computes the logits `[R, vocab_size]` of a batch that the backend has planned.
        backend: of `run`; `capturable`.
        max_num_seqs: the most sequences of a batch.
        vocab_size: width of the logits.
        dtype: of the logits.
        device: where the model lies.
        capture: turns a function without arguments into one that repeats its kernels.

    Raises:
        RuntimeError: from the constructor; the model does something that cannot be captured, such as asking
            the device for a number.
    """

    def __init__(
        self,
        run: Callable[[Batch], torch.Tensor],
        backend: AttentionBackend,
        *,
        max_num_seqs: int,
        vocab_size: int,
        dtype: torch.dtype,
        device: torch.device,
        capture: Callable[[Replay], Replay] | None = None,
    ) -> None:
        started = time.perf_counter()
        self._backend = backend
        self._sizes = bucket_sizes(max_num_seqs)
        self._inputs = StaticInputs(max_num_seqs, device)
        self._logits = torch.empty(max_num_seqs, vocab_size, dtype=dtype, device=device)
        self._replays: dict[int, Replay] = {}
        capture = capture or CudaCapture(device)
        nothing = build_batch([], page_size=1, device=device)
        for size in reversed(self._sizes):  # the largest first: the others then fit into its memory
            batch = self._inputs.fill(nothing, size)
            backend.plan(batch)

            def step(batch: Batch = batch, size: int = size) -> None:
                self._logits[:size].copy_(run(batch))

            self._replays[size] = capture(step)
        logger.info(
            "Captured the decode step for %d batch sizes in %.1f s",
            len(self._sizes),
            time.perf_counter() - started,
        )

    def forward(self, batch: Batch) -> torch.Tensor | None:
        """Return the logits `[R, vocab_size]` that the batch asks for, or None when no graph fits it."""
        count = len(batch.query_lens)
        size = bucket_for(self._sizes, count)
        if batch.num_decodes != count or size is None:
            return None
        self._backend.plan(self._inputs.fill(batch, size))
        self._replays[size]()
        return self._logits[batch.logits_index]  # a copy, which the next replay leaves alone


class CudaCapture:
    """Capture CUDA graphs that share one pool of memory.

    Args:
        device: whose kernels are captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, step: Replay) -> Replay:
        """Run `step`, which compiles kernels and lets libraries allocate, then capture it."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        mode = torch.cuda.get_sync_debug_mode()
        with torch.cuda.stream(self._stream):
            step()
            # What waits for the device cannot be captured. It is found now, as a failed capture may leave the
            # device's libraries in disorder.
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        torch.cuda.synchronize(self._stream.device)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            step()
        return graph.replay
