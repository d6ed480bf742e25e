"""Hold what concerns one HTTP request while it is served: its id, its time limit, how it went.

Imports no HTTP library: the log reads it, too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Exchange:
    """Hold what is known of one HTTP request.

    Attributes:
        request_id: the client's `X-Request-Id`, or one made up.
        headers: of the request, as ASGI has them.
        deadline: when it must have been answered, in seconds of `time.monotonic()`; None: it has time.
        started: when it came, in seconds of `time.monotonic()`.
        failure: kind of the failure that it was, or is about to be, answered with; None without any.
    """

    request_id: str
    headers: Sequence[tuple[bytes, bytes]] = ()
    deadline: float | None = None
    started: float = field(default_factory=time.monotonic)
    failure: str | None = None

    @property
    def remaining(self) -> float | None:
        """Return the seconds that are left, at least 0; None: it has time."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


current: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""The exchange that the running task works for; None outside of any."""
