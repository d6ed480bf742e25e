"""What may stand between every client of this process and the network: a cassette, while one is active."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .transport.options import HTTPOptions
    from .wire import Reply, Send


class Tap(Protocol):
    """Answers requests itself, or lets them through with `proceed`."""

    def send(self, action: Send, options: HTTPOptions, proceed: Callable[[], Reply]) -> Reply:
        """Answer a request of a sync transport."""

    async def send_async(
        self, action: Send, options: HTTPOptions, proceed: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        """Answer a request of an async transport."""


active: Tap | None = None
"""The tap that all requests go through; None: straight to the network."""
changes = 0
"""How often `active` changed. What a client learnt about its servers before a change is not true after it."""

_taps: list[Tap] = []
_lock = threading.Lock()


def insert(tap: Tap) -> None:
    """Let all requests of this process go through `tap`, until `remove`; the last one in is active."""
    with _lock:
        _taps.append(tap)
        _activate()


def remove(tap: Tap) -> None:
    """Take `tap` out again."""
    with _lock:
        _taps.remove(tap)
        _activate()


def _activate() -> None:
    global active, changes
    active = _taps[-1] if _taps else None
    changes += 1
