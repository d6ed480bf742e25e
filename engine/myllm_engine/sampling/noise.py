"""Make random numbers that depend on nothing but what they are for.

Each number is a hash of a key (seed and position) and an id, so that it can be had for any ids, in any order
and on any device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .kernels import Array, namespace

_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(seed: int, number: int) -> int:
    """Return a seed for the `number`-th request that brought none."""
    start = _mix(np.array([seed & _MASK], dtype=np.uint64) + _GOLDEN)
    return int(_mix(start + _GOLDEN * np.array([number + 1], dtype=np.uint64))[0])


def noise_keys(seeds: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """Return `[R, 2]` int32: 64 random bits per (seed, position).

    The generator is SplitMix64 (Steele, Lea, Flood 2014), a counter run through a mixing function: position
    is the counter, the mixed seed its start.
    """
    start = _mix(np.array([seed & _MASK for seed in seeds], dtype=np.uint64) + _GOLDEN)
    state = _mix(start + _GOLDEN * (np.array(positions, dtype=np.uint64) + np.uint64(1)))
    return state.view(np.int32).reshape(-1, 2)


def exponential_noise(keys: Array, ids: Array) -> Array:
    """Return `[R, n]`, exponentially distributed, one per key and id; none is 0.

    Args:
        keys: `[R, 2]` from `noise_keys`.
        ids: int32, `[n]` for all keys or `[R, n]`.
    """
    bits = _mix32(ids * -1640531527 ^ keys[:, :1])
    # 31 bits, of which float32 keeps the smallest numbers, which decide who wins, exactly.
    numbers = (_mix32(bits, keys[:, 1:]) & 0x7FFFFFFF) + 0.5
    # Scaled to (0, 1): 1 would give infinity, and a row with one candidate only must still choose it.
    return -namespace(numbers).log1p(numbers * (-(2.0**-31) * (1.0 - 2.0**-24)))


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _mix32(state: Array, key: Array | int = 0) -> Array:
    """Mix int32 numbers in place: Wellons' `lowbias32`, with a key added half-way."""
    # `>>` keeps the sign of an int32: the masks make it a logical shift.
    state ^= (state >> 16) & 0xFFFF
    state *= 0x7FEB352D
    state += key
    state ^= (state >> 15) & 0x1FFFF
    state *= 0x846CA68B - 2**32
    state ^= (state >> 16) & 0xFFFF
    return state
