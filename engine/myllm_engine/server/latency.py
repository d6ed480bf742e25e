"""Measure how long readers wait for tokens, for who looks at it now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..request import RequestOutput

_PERCENTILES = (0.5, 0.95)


class Latency:
    """Keep the waits of the last seconds: for the first token of an answer, and for each further one.

    Args:
        seconds: how long a wait counts.
        most: how many are kept, whatever their age; a percentile needs no more.
        clock: in seconds.
    """

    def __init__(
        self, *, seconds: float = 30.0, most: int = 2048, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._first: deque[tuple[float, float]] = deque(maxlen=most)
        self._next: deque[tuple[float, float]] = deque(maxlen=most)

    def watch(self) -> Watch:
        """Return what is told of the outputs of one HTTP request, which is submitted now."""
        return Watch(self._clock, self._first, self._next)

    def summary(self) -> dict[str, Any]:
        """Return, in milliseconds, `{"first_token": {"p50", "p95"}, "between_tokens": {"p50", "p95"}}`."""
        since = self._clock() - self._seconds
        return {
            name: _percentiles([wait for at, wait in kept if at >= since])
            for name, kept in (("first_token", self._first), ("between_tokens", self._next))
        }


class Watch:
    """Time the outputs of one HTTP request."""

    def __init__(
        self,
        clock: Callable[[], float],
        first: deque[tuple[float, float]],
        following: deque[tuple[float, float]],
    ) -> None:
        self._clock = clock
        self._first = first
        self._next = following
        self._begun = clock()
        self._last: dict[tuple[int, int], float] = {}

    def saw(self, index: int, output: RequestOutput) -> None:
        """Take note of an output of engine request `index`, just now."""
        now = self._clock()
        for sequence in output.outputs:
            if not sequence.token_ids:
                continue
            last = self._last.get((index, sequence.index))
            if last is None:
                self._first.append((now, now - self._begun))
            else:
                # A reader that comes late finds the tokens of several steps.
                self._next.append((now, (now - last) / len(sequence.token_ids)))
            self._last[index, sequence.index] = now


def _percentiles(waits: list[float]) -> dict[str, float | None]:
    waits.sort()
    return {
        f"p{share * 100:.0f}": round(waits[int(share * (len(waits) - 1))] * 1e3, 3) if waits else None
        for share in _PERCENTILES
    }
