"""Check the random numbers by their distribution and their independence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from myllm_engine.sampling.noise import derive_seed, exponential_noise, noise_keys


def ids(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


def test_noise_is_exponential_and_independent_over_seeds_positions_and_tokens():
    keys = noise_keys([seed for seed in range(-50, 50) for _ in range(20)], [*range(20)] * 100)
    noise = torch.from_numpy(exponential_noise(keys, ids(50)))  # [100 seeds * 20 positions, 50 tokens]
    assert noise.min() > 0
    uniforms = -torch.expm1(-noise)
    counts = torch.histc(uniforms, bins=20, min=0, max=1)
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # 19 degrees of freedom, one in a thousand
    table = uniforms.view(100, 20, 50)
    for axis in range(3):  # 4.9 million pairs at most: 5.5 standard deviations and some more
        rows = table.movedim(axis, 0).flatten(1)
        correlations = torch.corrcoef(rows).fill_diagonal_(0).abs()
        assert correlations.max() < 6 / rows.shape[1] ** 0.5
    # Neighbours, as an additive generator would leave them.
    neighbours = torch.stack([table[:, :, 1:].flatten(), table[:, :, :-1].flatten()])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.015


def test_the_smallest_numbers_are_as_fine_as_the_rest():
    """They decide who wins."""
    small = torch.from_numpy(exponential_noise(noise_keys(range(200), [0] * 200), ids(49152)).ravel())
    assert len(small[small < 1e-4].unique()) > 0.99 * (small < 1e-4).sum()
    assert (small < 1e-5).sum().item() == pytest.approx(len(small) * 1e-5, rel=0.35)


def test_numbers_of_any_ids_are_the_same_as_numpys_and_torchs():
    keys = noise_keys([5, -6, 2**63 - 1], [0, 1, 40_000])
    every = exponential_noise(keys, ids(300))
    some = np.array([[3, 299], [0, 17], [250, 1]], dtype=np.int32)
    assert np.array_equal(exponential_noise(keys, some), np.take_along_axis(every, some, axis=1))
    on_tensors = exponential_noise(torch.from_numpy(keys), torch.from_numpy(ids(300)))
    np.testing.assert_allclose(on_tensors.numpy(), every, rtol=1e-6)


def test_derived_seeds_differ():
    assert len({derive_seed(seed, number) for seed in range(10) for number in range(1000)}) == 10_000
