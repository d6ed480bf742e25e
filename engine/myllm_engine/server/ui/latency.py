"""Measure how long tokens are waited for, for who looks at it now."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...request import Request, RequestOutput

_PERCENTILES = (0.5, 0.95)


@dataclass(slots=True)
class _Live:
    """Hold when a request was sent to the engine, and when each of its sequences gained its latest token."""

    begun: float
    latest: dict[int, float] = field(default_factory=dict)


class Latency:
    """Observe the requests of an engine; see `loop.Observer`. Histograms for good are in `metrics.recorder`.

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
        self._live: dict[str, _Live] = {}
        self._lock = threading.Lock()  # of both deques: the engine's thread writes, an event loop reads
        self._first: deque[tuple[float, float]] = deque(maxlen=most)
        self._next: deque[tuple[float, float]] = deque(maxlen=most)

    def accepted(self, request: Request) -> None:
        """Begin to time a request."""
        self._live[request.request_id] = _Live(self._clock())

    def delivered(self, outputs: Sequence[RequestOutput]) -> None:
        """Take note of what a step gave."""
        now = self._clock()
        with self._lock:
            for output in outputs:
                live = self._live.get(output.request_id)
                if live is not None:
                    self._gain(live, output, now)
        for output in outputs:
            if output.finished:
                self._live.pop(output.request_id, None)

    def lost(self, request_ids: Sequence[str]) -> None:
        """Forget requests that nothing will become of."""
        for request_id in request_ids:
            self._live.pop(request_id, None)

    def _gain(self, live: _Live, output: RequestOutput, now: float) -> None:
        for sequence in output.outputs:
            if not sequence.token_ids:
                continue
            latest = live.latest.get(sequence.index)
            if latest is None:
                self._first.append((now, now - live.begun))
            else:
                # A step may give several tokens, where speculation was right.
                self._next.append((now, (now - latest) / len(sequence.token_ids)))
            live.latest[sequence.index] = now

    def summary(self) -> dict[str, Any]:
        """Return, in milliseconds, `{"first_token": {"p50", "p95"}, "between_tokens": {"p50", "p95"}}`.

        Percentiles are of the last `seconds`, and None of nothing.
        """
        with self._lock:
            kept = {"first_token": list(self._first), "between_tokens": list(self._next)}
        since = self._clock() - self._seconds
        return {name: _percentiles([wait for at, wait in each if at >= since]) for name, each in kept.items()}


def _percentiles(waits: list[float]) -> dict[str, float | None]:
    waits.sort()
    return {
        f"p{share * 100:.0f}": round(waits[int(share * (len(waits) - 1))] * 1e3, 3) if waits else None
        for share in _PERCENTILES
    }
