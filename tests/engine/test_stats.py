"""Counting by size."""

from __future__ import annotations

import pytest

from myllm_engine.stats import Histogram


def test_bounds_are_inclusive_as_prometheus_has_them():
    histogram = Histogram([1, 2, 5])
    for value in (0, 1, 1.5, 2, 5, 5.01, 100):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1, 2]
    assert histogram.sum == pytest.approx(114.51)
