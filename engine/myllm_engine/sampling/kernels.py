"""Compute with rows of logits quickly on every device.

On a CPU each of torch's operations costs some 5 µs to start, and its argmax, topk, sort and comparisons are
not vectorised: of a row of 49,152 float32 its argmax takes 100 µs and its sort 4 ms, where numpy needs 4 µs
and 0.2 ms. So there, all but the passes over whole rows that torch does well is numpy's work. Code that is
written for an `Array` runs with both.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from types import ModuleType
from typing import TypeAlias

import numpy as np
import torch

Array: TypeAlias = np.ndarray | torch.Tensor

# Wide enough that few columns hold two of the largest values, small enough that little is looked at twice.
_COLUMN = 32


def as_array(values: torch.Tensor) -> Array:
    """Return the same memory as what computes best there: a numpy array on a CPU, else the tensor."""
    return values.numpy() if values.device.type == "cpu" else values


def namespace(values: Array) -> ModuleType:
    """Return the module whose functions take `values`."""
    return torch if isinstance(values, torch.Tensor) else np


def take(values: Array, index: Array) -> Array:
    """Return `values[r, index[r, j]]` at `[r, j]`."""
    if isinstance(values, torch.Tensor):
        return values.gather(1, index)
    return np.take_along_axis(values, index, axis=1)


def to_int32(values: Array) -> Array:
    """Return integers as int32."""
    return values.to(torch.int32) if isinstance(values, torch.Tensor) else values.astype(np.int32)


def maximum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest value of each row of `values` `[R, V]` and its index, `[R]` each.

    NaN is the maximum of a row that holds one.
    """
    if values.device.type != "cpu":
        return tuple(values.max(dim=-1))
    index = torch.from_numpy(values.float().numpy().argmax(axis=-1))
    return values.gather(1, index.unsqueeze(1)).squeeze(1), index


def maximum_allowed(
    values: torch.Tensor, rows: SequenceOf[int], masks: SequenceOf[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `maximum` does for some rows, in which only what `masks` `[V]` allow counts; on a CPU.

    Of a row of which nothing is allowed, minus infinity and any index.
    """
    best, indices = np.full(len(rows), -np.inf, dtype=np.float32), np.zeros(len(rows), dtype=np.int64)
    array = values.float().numpy()
    for place, (row, mask) in enumerate(zip(rows, masks, strict=True)):
        if 2 * np.count_nonzero(mask) > len(mask):
            indices[place] = np.where(mask, array[row], -np.inf).argmax()
            best[place] = array[row, indices[place]]
        elif len(kept := np.flatnonzero(mask)):
            indices[place] = kept[array[row, kept].argmax()]
            best[place] = array[row, indices[place]]
    return torch.from_numpy(best), torch.from_numpy(indices)


def top_k(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `k` largest values of each row, descending, and their indices, `[R, k]` each.

    A value among the k largest lies in one of the k columns with the largest maxima, so that most of the row
    is only compared with its neighbours.
    """
    rows, width = values.shape
    columns = width // _COLUMN
    if width % _COLUMN or 4 * k > columns:
        return tuple(values.topk(k, dim=-1))
    grid = values.view(rows, _COLUMN, columns)
    best = grid.amax(dim=1).topk(k, dim=-1, sorted=False).indices
    top = grid.gather(2, best.unsqueeze(1).expand(-1, _COLUMN, -1)).flatten(1).topk(k, dim=-1)
    column = best.gather(1, top.indices % k)
    return top.values, top.indices // k * columns + column


def largest(values: torch.Tensor, k: int) -> Array:
    """Return the `k` largest values of each row, descending."""
    width = values.shape[1]
    if values.device.type != "cpu" or 4 * k * _COLUMN <= width:
        return as_array(top_k(values, k)[0])
    # Ascending order of what is negated: reversed memory would slow down whoever reads it.
    array = -values.numpy()
    if k < width:
        array = np.partition(array, k - 1, axis=-1)[:, :k]
    return -np.sort(array, axis=-1)


def at_least(values: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Return float32, 1.0 where `values` is not below `bound`, else 0.0; they are broadcast."""
    shape = torch.broadcast_shapes(values.shape, bound.shape)
    return torch.ge(values, bound, out=values.new_empty(shape))


def pick(values: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return the given rows of `values`, in ascending order; without a copy where these are all."""
    if len(rows) == len(values):
        return values
    return values[on_device(rows, values.device)]


def on_device(
    values: SequenceOf[int] | SequenceOf[float] | np.ndarray,
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return numbers as a tensor, without waiting for what the device does."""
    tensor = torch.from_numpy(values) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
    return tensor.to(device, non_blocking=True)


class HostCopy:
    """Copy tensors to the host, behind what the device does meanwhile.

    Args:
        tensors: to be copied; on a CPU they are taken as they are.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._event = None
        if any(tensor.is_cuda for tensor in tensors):
            self._event = torch.cuda.Event()
            self._event.record()

    def lists(self) -> list[list]:
        """Wait until the copies are there, and return them as nested lists."""
        if self._event is not None:
            self._event.synchronize()
        return [tensor.tolist() for tensor in self._tensors]
