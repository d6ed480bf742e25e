"""A call from request to answer, without I/O: generators that both drivers run.

A flow yields what it wants done (`Send`, `Sleep`), is sent the `Reply` or thrown the error, and returns the
answer. The idea is httpx's `Auth.auth_flow`: whatever is decided here is written once for sync and async.
"""

from __future__ import annotations

import copy
import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import tenacity
from tenacity import DoAttempt, DoSleep

from ._version import __version__
from .diagnosis import error_from_reply
from .dialects import Dialect
from .dialects._base import load_json
from .endpoints import Endpoint
from .errors import (
    APIStatusError,
    ConnectError,
    InvalidResponseError,
    MyLLMError,
    NotFoundError,
    RequestTimeoutError,
)
from .headers import merged
from .params import Parameters
from .types import ChatCompletion, Completion, ModelInfo
from .wire import Call, Reply, Send, Sleep, Timeout, WireRequest

T = TypeVar("T")
Flow = Generator[Send | Sleep, Reply | None, T]

_NO_PARAMETERS = Parameters()

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more with `Retry-After` is not waited for: the caller decides."""


@dataclass(slots=True, kw_only=True)
class Route:
    """Where the calls of one client go, and how hard they try. Shared by its calls; thread-safe."""

    endpoints: Sequence[Endpoint]
    dialect: Dialect
    max_retries: int = 2
    headers: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _turn: itertools.count[int] = field(default_factory=itertools.count)
    _served: list[str] = field(default_factory=list)

    def first(self) -> int:
        """Return the index of the endpoint whose turn it is (round robin)."""
        return next(self._turn) % len(self.endpoints)


def answer_flow(route: Route, call: Call) -> Flow[ChatCompletion | Completion]:
    """Run a call that is answered whole."""
    job = _Job(route, call)
    yield from job.name_model()
    replies: list[Reply] = []
    for request in route.dialect.requests(job.call):
        send, reply = yield from job.attempts(request)
        replies.append(reply)
    with located(send.endpoint.url, job.request_id):
        answer = route.dialect.answer(job.call, replies)
    answer._endpoint = send.endpoint.url
    answer._request_id = replies[-1].headers.get("x-request-id") or job.request_id
    return answer


def stream_flow(route: Route, call: Call) -> Flow[tuple[Send, Reply]]:
    """Open a stream: retried until its first byte, and never after it."""
    job = _Job(route, call)
    yield from job.name_model()
    (request,) = route.dialect.requests(job.call)
    send, reply = yield from job.attempts(request, stream=True)
    kind = reply.headers.get("content-type", "text/event-stream")
    if "event-stream" not in kind:
        reply.stream.abandon()
        raise InvalidResponseError(
            f"The answer is no event stream but {kind!r}.",
            endpoint=send.endpoint.url,
            request_id=job.request_id,
            hint="Can this server stream? A call without streaming may work.",
        )
    return send, reply


def models_flow(route: Route, timeout: Timeout) -> Flow[list[ModelInfo]]:
    """Ask which models are served (`GET /v1/models`)."""
    job = _Job(route, Call(kind="chat", model=None, params=_NO_PARAMETERS, timeout=timeout))
    return (yield from job.models(job.turns))


def new_request_id() -> str:
    """Return a fresh request id, sent as `X-Request-Id`."""
    return f"myllm-{uuid.uuid4().hex[:24]}"


class _Job:
    """One call on its way: its endpoints' turns, its deadline and its request id, whatever it sends."""

    def __init__(self, route: Route, call: Call) -> None:
        self.route = route
        self.call = call
        self.request_id = new_request_id()
        self.turns = _Turns(route)
        self._start = route.clock()

    def name_model(self) -> Flow[None]:
        """Fill in the model where the caller named none: the first one that the server serves."""
        # TGI serves one model and reads no name.
        if self.call.model is not None or self.route.dialect.name == "tgi":
            return
        if not self.route._served:
            served = yield from self.models(self.turns.copy())
            if not served:
                raise InvalidResponseError("The server lists no model.", hint="Name one with `model=`.")
            self.route._served[:] = [served[0].id]
        self.call = replace(self.call, model=self.route._served[0])

    def models(self, turns: _Turns) -> Flow[list[ModelInfo]]:
        """Ask which models are served."""
        send, reply = yield from self.attempts(WireRequest(method="GET", path="/v1/models"), turns=turns)
        with located(send.endpoint.url, self.request_id):
            return [ModelInfo.model_validate(entry) for entry in load_json(reply.body)["data"]]

    @property
    def elapsed(self) -> float:
        """Seconds since the call began."""
        return self.route.clock() - self._start

    @property
    def remaining(self) -> float | None:
        """Seconds that are left, or None for no limit."""
        total = self.call.timeout.total
        return None if total is None else total - self.elapsed

    def attempts(
        self, request: WireRequest, *, stream: bool = False, turns: _Turns | None = None
    ) -> Flow[tuple[Send, Reply]]:
        """Send one request until it succeeds, may not be retried, or has used up its tries or its time."""
        turns = turns or self.turns
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_retryable),
            stop=self._stop,
            wait=lambda state: _wait(state, len(self.route.endpoints)),
            reraise=True,
        )
        state = tenacity.RetryCallState(retry_object=retrying, fn=None, args=(), kwargs={})
        retrying.begin()
        while True:
            do = retrying.iter(retry_state=state)
            if isinstance(do, DoAttempt):
                endpoint = turns.take()
                try:
                    send = self._send(endpoint, request, state.attempt_number, stream)
                    reply = yield send
                    assert reply is not None  # the driver answers a Send with a Reply
                    if reply.status >= 300:
                        raise error_from_reply(send, reply, self.route.dialect, self.request_id)
                except MyLLMError as exc:
                    if isinstance(exc, ConnectError) and not exc.connected:
                        turns.dead.add(endpoint)
                    if isinstance(exc, NotFoundError):
                        self.route._served.clear()  # the server may serve another model by now
                    state.set_exception((type(exc), exc, exc.__traceback__))
                else:
                    return send, reply
            elif isinstance(do, DoSleep):
                state.prepare_for_next_attempt()
                if do > 0:
                    yield Sleep(seconds=float(do))
            else:  # tenacity returns the result of the last attempt; ours left the loop above
                raise AssertionError(f"tenacity asked for {do!r}")

    def _stop(self, state: tenacity.RetryCallState) -> bool:
        tries, many = state.attempt_number, len(self.route.endpoints)
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ConnectError) and not error.connected:
            if tries < many:
                return False  # another server may live
            connect = self.call.timeout.connect
            if connect is not None and self.elapsed + state.upcoming_sleep >= connect:
                return True
        if (remaining := self.remaining) is not None and state.upcoming_sleep >= remaining:
            return True
        return state.upcoming_sleep > LONGEST_WAIT or tries > self.route.max_retries

    def _send(self, endpoint: Endpoint, request: WireRequest, attempt: int, stream: bool) -> Send:
        headers = merged(
            {
                "Accept": "text/event-stream" if stream else "application/json",
                "User-Agent": f"myllm/{__version__}",
                "X-Request-Id": self.request_id,
                "X-Retry-Count": str(attempt - 1),
            },
            {} if endpoint.api_key is None else {"Authorization": f"Bearer {endpoint.api_key}"},
            self.route.headers,
            self.call.extra_headers,
        )
        timeout = self.call.timeout
        if (remaining := self.remaining) is not None:
            if remaining <= 0:
                raise RequestTimeoutError(
                    f"The deadline of {timeout.total:g} s passed before the request could be sent.",
                    phase="total",
                    endpoint=endpoint.url,
                    request_id=self.request_id,
                )
            timeout = replace(timeout, total=remaining)
        return Send(request=request, endpoint=endpoint, headers=headers, timeout=timeout, stream=stream)


class _Turns:
    """The endpoints that the tries of one call go to: around the ring, past those found dead."""

    def __init__(self, route: Route) -> None:
        first = route.first()
        self._ring = deque((*route.endpoints[first:], *route.endpoints[:first]))
        self.dead: set[Endpoint] = set()

    def copy(self) -> _Turns:
        """Return turns of their own, which know the same dead ones."""
        twin = copy.copy(self)
        twin._ring = deque(self._ring)
        return twin

    def take(self) -> Endpoint:
        """Return the next endpoint; when all are dead, they get another turn each."""
        alive = [endpoint for endpoint in self._ring if endpoint not in self.dead]
        endpoint = alive[0] if alive else self._ring[0]
        self._ring.rotate(-1 - self._ring.index(endpoint))
        return endpoint


def is_retryable(error: BaseException) -> bool:
    """Whether a second try could go better: connection trouble and the statuses 408, 409, 429, 5xx."""
    if isinstance(error, ConnectError):
        return True
    if isinstance(error, RequestTimeoutError):
        return False  # It had its time; asking again would double it and leave two requests running.
    return isinstance(error, MyLLMError) and error.status in RETRIED_STATUSES


_backoff = tenacity.wait_exponential(multiplier=0.25, max=8.0) + tenacity.wait_random(0, 0.25)


def _wait(state: tenacity.RetryCallState, endpoints: int) -> float:
    error = state.outcome.exception() if state.outcome else None
    if state.attempt_number < endpoints:
        return 0.0  # the next endpoint has done nothing to be waited for
    if isinstance(error, APIStatusError) and error.retry_after is not None:
        return error.retry_after
    return float(_backoff(state))


@contextmanager
def located(endpoint: str, request_id: str) -> Iterator[None]:
    """Say where a bad answer came from; whatever its reading stumbles over is a bad answer."""
    try:
        yield
    except MyLLMError as exc:
        exc.endpoint, exc.request_id = endpoint, request_id
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidResponseError(
            f"The answer is not of this API ({type(exc).__name__}: {str(exc).splitlines()[0]}).",
            endpoint=endpoint,
            request_id=request_id,
            hint="Is `dialect=` right for this server?",
        ) from exc
