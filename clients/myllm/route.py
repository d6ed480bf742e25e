"""Where the calls of a client go, and how hard they try."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .balancer import Balancer
from .cache import Cache
from .dialects import Dialect
from .endpoints import Endpoint
from .hooks import Hook
from .limits import RateLimiter, RetryBudget
from .messages import MessagePolicy
from .transport.options import HTTPOptions


@dataclass(slots=True, kw_only=True)
class Route:
    """What all calls of one client share. Thread-safe.

    Attributes:
        dialect: of all servers; None asks each server what it is.
        hedge_after: seconds without an answer after which another server is asked too; None: never.
        http: how the servers are reached; looked at for its passwords, which errors may not show.
        cache: whose rules say what is kept; the drivers do the keeping.
        roles: message policies found out under "auto", by model, and when: see `tap.changes`.
    """

    balancer: Balancer
    dialect: Dialect | None = None
    max_retries: int = 2
    budget: RetryBudget = field(default_factory=RetryBudget)
    limiter: RateLimiter | None = None
    hedge_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    http: HTTPOptions | None = None
    message_policy: MessagePolicy = "as_is"
    hooks: Sequence[Hook] = ()
    cache: Cache | None = None
    clock: Callable[[], float] = time.monotonic
    roles: dict[tuple[int, str | None], MessagePolicy] = field(default_factory=dict)

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The servers."""
        return self.balancer.endpoints
