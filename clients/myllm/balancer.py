"""Which server gets the next try: the servers' states, their breakers, and the policy that chooses.

No I/O: the flow and `PoolTransport` take a `Lease` before a try and say afterwards how it went. One balancer
belongs to one client (and to all its copies); it is thread-safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from . import tap
from .endpoints import Endpoint
from .errors import (
    APIStatusError,
    ConnectError,
    ConstraintNotEnforced,
    IncompleteStreamError,
    InvalidParameterError,
    InvalidResponseError,
    MyLLMError,
    RequestTimeoutError,
)
from .policies import Affinity, Policy, get_policy
from .wire import ServerInfo

_FAILURES = frozenset({500, 502, 503, 504})
State = Literal["closed", "open", "half_open"]

_log = logging.getLogger("myllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """When a server that keeps failing is left alone, and for how long.

    Attributes:
        failures: failures in a row that open the breaker. A refused connection opens it at once: nothing
            listens there, and asking again tells nothing new.
        cooldown: seconds until one call is let through as a trial (half open); doubled each time that the
            trial fails.
        longest: seconds that the doubling ends at.
    """

    failures: int = 3
    cooldown: float = 1.0
    longest: float = 30.0

    def __post_init__(self) -> None:
        if self.failures < 1 or not 0 < self.cooldown <= self.longest:
            raise InvalidParameterError(
                f"`breaker={self!r}`: `failures` must be at least 1, and 0 < `cooldown` <= `longest`.",
                param="breaker",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """How one server is doing, as this client sees it.

    Attributes:
        state: "closed" takes calls, "open" is left alone, "half_open" has its trial call on the way.
        in_flight: unanswered requests.
        requests, failures: tries so far, and those that failed by the server's fault.
        latency: seconds an answer took, a moving average over about ten; None before the first one.
        last_error: what went wrong last, or None.
        reopens_in: seconds until a trial, when open.
        server: what the server is, when it was asked.
    """

    url: str
    state: State
    weight: float
    in_flight: int
    requests: int
    failures: int
    latency: float | None
    last_error: str | None
    reopens_in: float | None
    server: ServerInfo | None


@dataclass(slots=True, eq=False)
class ServerState:
    """One server, as the balancer keeps it.

    `name` tells it from another entry with the same URL. `info` and `model` are what the flow found out about
    it, `under` when: see `tap.changes`. `unreachable` says that it was left alone because nothing answers
    there, which a health check may take back.
    """

    endpoint: Endpoint
    name: str
    info: ServerInfo | None = None
    model: str | None = None
    under: int = 0
    in_flight: int = 0
    requests: int = 0
    failures: int = 0
    failures_in_row: int = 0
    openings: int = 0
    open_until: float | None = None
    unreachable: bool = False
    trial: bool = False
    latency: float | None = None
    last_error: str | None = None

    @property
    def url(self) -> str:
        """See `policies.Candidate`."""
        return self.endpoint.url

    @property
    def weight(self) -> float:
        """See `policies.Candidate`."""
        return self.endpoint.weight


@dataclass(slots=True, eq=False)
class Lease:
    """The right to one try at one server.

    Exactly one of the three methods ends it, and later ones do nothing.
    """

    server: ServerState
    trial: bool
    _balancer: Balancer
    _started: float
    _open: bool = True

    @property
    def endpoint(self) -> Endpoint:
        """The server to try."""
        return self.server.endpoint

    def ended(self, error: MyLLMError) -> None:
        """Say how the try failed, and leave it to the error's kind whose fault that is."""
        if isinstance(error, ConstraintNotEnforced):
            self.succeeded()  # the model broke it, or the server cannot; it lives
        elif isinstance(error, ConnectError):
            self.failed(error, refused=not error.connected)
        elif isinstance(error, RequestTimeoutError):
            # A deadline of the caller's and a queue of our own say nothing of the server; silence does.
            (self.failed(error) if error.phase in ("first_byte", "idle", "write") else self.released())
        elif isinstance(error, APIStatusError):
            (self.failed(error) if error.status in _FAILURES else self.succeeded())
        elif isinstance(error, InvalidResponseError | IncompleteStreamError):
            self.failed(error)
        else:
            self.released()  # nothing was sent

    def began(self) -> None:
        """Say that the server has begun to answer, which ends a trial long before a stream ends."""
        self._balancer._began(self.server)

    def succeeded(self) -> None:
        """Say that the server answered, be it with a refusal: it lives."""
        self._balancer._end(self, "succeeded")

    def failed(self, error: BaseException, *, refused: bool = False) -> None:
        """Say that the server failed; `refused`: nothing listens there."""
        self._balancer._end(self, "refused" if refused else "failed", error)

    def released(self) -> None:
        """Say nothing of the server: the call was cancelled, or went elsewhere."""
        self._balancer._end(self, "released")


@dataclass(slots=True, eq=False, weakref_slot=True)
class Balancer:
    """The servers of one client.

    Attributes:
        endpoints: the servers, in the order given.
        policy: chooses among those whose breakers are closed.
        breaker: None never leaves a server alone.
    """

    endpoints: Sequence[Endpoint]
    policy: Policy = field(default_factory=lambda: get_policy("round_robin"))
    breaker: Breaker | None = field(default_factory=Breaker)
    clock: Callable[[], float] = time.monotonic
    _sessions: Affinity = field(init=False, default_factory=Affinity)
    _servers: list[ServerState] = field(init=False)
    # Reentrant, for a stream that nobody holds ends its lease wherever Python collects it.
    _lock: threading.RLock = field(init=False, default_factory=threading.RLock)

    def __post_init__(self) -> None:
        names = Counter[str]()
        self._servers = []
        for endpoint in self.endpoints:
            names[endpoint.url] += 1
            count = names[endpoint.url]
            self._servers.append(
                ServerState(endpoint, endpoint.url if count == 1 else f"{endpoint.url} ({count})")
            )

    @property
    def keyed(self) -> bool:
        """Whether the policy looks at keys."""
        return getattr(self.policy, "keyed", False)

    def take(self, tried: Collection[Endpoint] = (), key: str | None = None) -> Lease:
        """Return a lease on the server that should get the next try.

        Servers not yet tried come first, then those that were; an open breaker is passed over as long as
        there is another server, and no longer: when all are down, each call is a trial (Envoy calls it panic
        mode).

        Args:
            tried: servers that have failed this call already.
            key: see `Policy.choose`; calls with one go by affinity whatever the policy.
        """
        with self._lock:
            now = self.clock()
            if len(self._servers) == 1:
                chosen = self._servers[0]
            else:
                fresh = [s for s in self._servers if s.endpoint not in tried] or self._servers
                ready = [s for s in fresh if s.open_until is None]
                due = [s for s in fresh if s.open_until is not None and now >= s.open_until and not s.trial]
                chosen = self._choose(due[:1] or ready or fresh, key)
            return self._leased(chosen, trial=chosen.open_until is not None and not chosen.trial)

    def lease(self, server: ServerState) -> Lease:
        """Return a lease on this very server, whatever its state."""
        with self._lock:
            return self._leased(server)

    def other(self, than: Endpoint, key: str | None = None) -> Lease | None:
        """Return a lease on another server that is well, or None when there is none."""
        with self._lock:
            others = [s for s in self._servers if s.endpoint != than and s.open_until is None]
            if not others:
                return None
            return self._leased(self._choose(others, key))

    def _choose(self, candidates: Sequence[ServerState], key: str | None) -> ServerState:
        if len(candidates) == 1:
            return candidates[0]
        # A session keeps to its server under every policy.
        policy = self.policy if key is None or self.keyed else self._sessions
        return candidates[policy.choose(candidates, key)]

    def _leased(self, server: ServerState, *, trial: bool = False) -> Lease:
        server.trial = server.trial or trial
        if server.under != tap.changes:
            server.info = server.model = None
            server.under = tap.changes
        server.in_flight += 1
        server.requests += 1
        return Lease(server, trial, self, self.clock())

    def probed(self, endpoint: Endpoint, error: BaseException | None) -> None:
        """Take the result of a health probe: an error opens the breaker, and None takes that back.

        A breaker that calls opened by failing stays open: a server may be well but for them.
        """
        with self._lock:
            for server in self._servers:
                if server.endpoint == endpoint:
                    if error is not None and server.open_until is not None and self.breaker is not None:
                        # Known already: no call is to find out meanwhile.
                        server.open_until = max(server.open_until, self.clock() + self.breaker.cooldown)
                        server.unreachable = True
                    elif error is not None:
                        self._fail(server, error, at_once=True)
                    elif server.unreachable:
                        self._close(server)

    def status(self) -> list[EndpointStatus]:
        """Return how each server is doing."""
        with self._lock:
            return [self._status(server) for server in self._servers]

    def servers(self) -> Sequence[ServerState]:
        """Return the servers' states, in the order of the endpoints."""
        return tuple(self._servers)

    def _status(self, server: ServerState) -> EndpointStatus:
        open_until, now = server.open_until, self.clock()
        state: State = "closed" if open_until is None else "half_open" if server.trial else "open"
        return EndpointStatus(
            url=server.url,
            state=state,
            weight=server.weight,
            in_flight=server.in_flight,
            requests=server.requests,
            failures=server.failures,
            latency=server.latency,
            last_error=server.last_error,
            reopens_in=None if open_until is None else max(0.0, open_until - now),
            server=server.info,
        )

    def _began(self, server: ServerState) -> None:
        with self._lock:
            server.trial = False
            server.open_until = None  # but its failures still count: the stream may break like those before

    def _end(
        self,
        lease: Lease,
        how: Literal["succeeded", "failed", "refused", "released"],
        error: BaseException | None = None,
    ) -> None:
        with self._lock:
            if not lease._open:
                return
            lease._open = False
            server = lease.server
            server.in_flight -= 1
            if lease.trial:
                server.trial = False
            if how == "succeeded":
                took = self.clock() - lease._started
                server.latency = took if server.latency is None else 0.9 * server.latency + 0.1 * took
                if server.failures_in_row or server.open_until is not None:
                    self._close(server)
            elif error is not None:
                server.failures += 1
                self._fail(server, error, at_once=how == "refused", trial=lease.trial)

    def _fail(self, server: ServerState, error: BaseException, *, at_once: bool, trial: bool = False) -> None:
        server.failures_in_row += 1
        server.last_error = str(error)
        breaker = self.breaker
        if breaker is None:
            return
        if server.open_until is not None and not trial:
            return  # a call that was on its way before says nothing new
        if trial or at_once or server.failures_in_row >= breaker.failures:
            server.unreachable = at_once
            wait = min(breaker.cooldown * 2 ** min(server.openings, 16), breaker.longest)
            server.openings += 1
            server.open_until = self.clock() + wait
            server.info = server.model = None  # what comes back may be another server
            if len(self._servers) > 1:
                _log.info("%s is left alone for %.1f s: %s", server.url, wait, error)

    @staticmethod
    def _close(server: ServerState) -> None:
        if server.open_until is not None:
            _log.info("%s answers again", server.url)
        server.failures_in_row = server.openings = 0
        server.open_until = None
        server.unreachable = False
