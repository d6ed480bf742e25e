"""Whether and when a call is tried again. No I/O; tenacity decides, this says what it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tenacity

from .endpoints import Endpoint
from .errors import (
    AllEndpointsDown,
    APIStatusError,
    ConnectError,
    ContextLengthError,
    MyLLMError,
    RequestTimeoutError,
)

if TYPE_CHECKING:
    from .route import Route

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more with `Retry-After` is not waited for: the caller decides."""

_backoff = tenacity.wait_exponential(multiplier=0.25, max=8.0) + tenacity.wait_random(0, 0.25)


class Retries:
    """The failed tries of one call: tenacity's loop turned inside out.

    Told of a failure it says how long to wait before the next try, or raises it. A call that succeeds at once
    never makes tenacity's objects.

    Attributes:
        tried: the last failure at each server that was tried.
    """

    def __init__(
        self, route: Route, *, started: float, deadline: float | None, connect: float | None
    ) -> None:
        self.tried: dict[Endpoint, MyLLMError] = {}
        self._not_before: dict[Endpoint, float] = {}
        self._route = route
        self._started = started
        self._deadline = deadline
        self._connect = connect
        self._policy: tenacity.Retrying | None = None
        self._state: tenacity.RetryCallState | None = None

    def after(self, endpoint: Endpoint, error: MyLLMError) -> float:
        """Return the seconds until the next try.

        Raises:
            MyLLMError: `error`, when there is to be none; `AllEndpointsDown`, when that was the last server.
        """
        self.tried[endpoint] = error
        if error.retry_after is not None:
            self._not_before[endpoint] = self._route.clock() + error.retry_after
        if self._policy is None or self._state is None:
            self._policy = tenacity.Retrying(
                retry=tenacity.retry_if_exception(is_retryable),
                stop=self._stop,
                wait=self._wait,
                reraise=True,
            )
            self._state = tenacity.RetryCallState(retry_object=self._policy, fn=None, args=(), kwargs={})
            self._policy.begin()
            self._policy.iter(retry_state=self._state)  # the try that has failed already
        self._state.set_exception((type(error), error, error.__traceback__))
        try:
            wait = self._policy.iter(retry_state=self._state)
        except ConnectError:
            if (down := self._all_down()) is None:
                raise
            raise down from None
        assert isinstance(wait, tenacity.DoSleep)
        self._state.prepare_for_next_attempt()
        self._policy.iter(retry_state=self._state)
        return float(wait)

    def avoid(self) -> set[Endpoint]:
        """Return the servers that should not get the next try: those tried, or of all those that wait."""
        if self._untried():
            return set(self.tried)
        now = self._route.clock()
        return {endpoint for endpoint, ready in self._not_before.items() if ready > now + 0.001}

    def _untried(self) -> bool:
        return len(self.tried) < len(self._route.endpoints)

    def _all_down(self) -> AllEndpointsDown | None:
        """Return the error that names every server, when none of several could be reached."""
        down = {e.url: error for e, error in self.tried.items() if isinstance(error, ConnectError)}
        if len(down) < 2 or len(down) < len(self._route.endpoints):
            return None
        each = " ".join(f"[{url}] {error.message}" for url, error in down.items())
        return AllEndpointsDown(
            f"None of {len(down)} servers could be reached: {each}",
            errors=down,
            request_id=next(iter(down.values())).request_id,
            hint="Are they running, and are `url` and `port` right?",
        )

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether the try that failed was the last one."""
        error = state.outcome.exception() if state.outcome else None
        now = self._route.clock()
        if self._untried() and (isinstance(error, ConnectError) or _is_busy(error)):
            return False  # another server may live, or have room: going there is no second try
        spent = now - self._started + state.upcoming_sleep
        refused = isinstance(error, ConnectError) and not error.connected
        if refused and self._connect is not None and spent >= self._connect:
            return True
        if self._deadline is not None and now + state.upcoming_sleep >= self._deadline:
            return True
        if state.upcoming_sleep > LONGEST_WAIT or state.attempt_number > self._route.max_retries:
            return True
        return not self._route.budget.spend()

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds until the next try."""
        if self._untried():
            return 0.0  # the next server has done nothing to be waited for
        now = self._route.clock()
        waits = [self._not_before.get(endpoint, now) - now for endpoint in self.tried]
        soonest = max(0.0, min(waits))
        # A server that named no time is given some.
        return soonest if len(self._not_before) == len(self.tried) else float(_backoff(state))


def _is_busy(error: BaseException | None) -> bool:
    return isinstance(error, APIStatusError) and error.status in (429, 502, 503, 504)


def is_retryable(error: BaseException) -> bool:
    """Whether a second try could go better: connection trouble and the statuses 408, 409, 429, 5xx."""
    if isinstance(error, ConnectError):
        return True
    if isinstance(error, RequestTimeoutError):
        return False  # It had its time; asking again would double it and leave two requests running.
    if isinstance(error, ContextLengthError):
        return False  # llama-cpp-python says 500 for it
    return isinstance(error, MyLLMError) and error.status in RETRIED_STATUSES
