"""How much a client may ask: a budget for retries, and a rate for calls. No I/O; thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class RetryBudget:
    """Keeps retries from multiplying the load on servers that are failing under it.

    A bucket of `capacity` tokens: a retry takes one, a success gives a fifth of one back, a second that
    passes a whole one. While it is empty, failures are told at once. (As in gRPC's retry throttling.)
    """

    def __init__(self, capacity: float = 50.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self._tokens = capacity
        self._clock = clock
        self._seen = clock()
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        """Say that a call succeeded."""
        if self._tokens < self.capacity:  # the usual case needs no lock
            with self._lock:
                self._tokens = min(self.capacity, self._tokens + 0.2)

    def spend(self) -> bool:
        """Take the token for one retry; False: there is none."""
        with self._lock:
            now = self._clock()
            self._tokens = min(self.capacity, self._tokens + (now - self._seen))
            self._seen = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


class RateLimiter:
    """Spaces calls out to `per_second` in the long run; up to one second's worth may start at once."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._burst = max(1.0, per_second)
        self._clock = clock
        self._full_at = clock()  # when the bucket will be full again, if nothing more is taken
        self._lock = threading.Lock()

    def reserve(self, at_most: float | None = None) -> float | None:
        """Take the next place and return the seconds until it comes; None: that is more than `at_most`."""
        with self._lock:
            now = self._clock()
            full_at = max(self._full_at, now) + 1 / self.per_second
            wait = max(0.0, full_at - now - self._burst / self.per_second)
            if at_most is not None and wait > at_most:
                return None
            self._full_at = full_at
            return wait
