"""A call from request to answer, without I/O: generators that both drivers run.

A flow yields what it wants done (`Send`, `Sleep`), is sent the `Reply` or thrown the error, and returns the
answer. The idea is httpx's `Auth.auth_flow`: whatever is decided here is written once for sync and async.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
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
    ConnectError,
    InvalidResponseError,
    MyLLMError,
    OverloadedError,
    RateLimitError,
    RequestTimeoutError,
    ServerError,
)
from .params import Parameters
from .types import ChatCompletion, Completion, ModelInfo
from .wire import Call, Reply, Send, Sleep, Timeout, WireRequest

T = TypeVar("T")
Flow = Generator[Send | Sleep, Reply | None, T]

_NO_PARAMETERS = Parameters()

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})


@dataclass(slots=True, kw_only=True)
class Route:
    """Where the calls of one client go, and how hard they try. Shared by its calls; thread-safe."""

    endpoints: Sequence[Endpoint]
    dialect: Dialect
    max_retries: int = 2
    headers: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _turn: itertools.count[int] = field(default_factory=itertools.count)

    def first(self) -> int:
        """Return the index of the endpoint whose turn it is (round robin)."""
        return next(self._turn) % len(self.endpoints)


def answer_flow(route: Route, call: Call) -> Flow[ChatCompletion | Completion]:
    """Run a call that is answered whole."""
    call = yield from _with_model(route, call)
    request_id = new_request_id()
    deadline = _Deadline(route, call.timeout)
    replies: list[Reply] = []
    send: Send | None = None
    for request in route.dialect.requests(call):
        send, reply = yield from _attempts(route, request, call, request_id, deadline)
        replies.append(reply)
    assert send is not None  # a dialect makes at least one request
    try:
        answer = route.dialect.answer(call, replies)
    except InvalidResponseError as exc:
        raise _located(exc, send, request_id) from None
    answer._endpoint = send.endpoint.url
    answer._request_id = replies[-1].headers.get("x-request-id") or request_id
    return answer


def stream_flow(route: Route, call: Call) -> Flow[tuple[Send, Reply]]:
    """Open a stream: retried until its first byte, and never after it."""
    call = yield from _with_model(route, call)
    (request,) = route.dialect.requests(call)
    return (
        yield from _attempts(
            route, request, call, new_request_id(), _Deadline(route, call.timeout), stream=True
        )
    )


def models_flow(route: Route, timeout: Timeout) -> Flow[list[ModelInfo]]:
    """Ask which models are served (`GET /v1/models`)."""
    call = Call(kind="chat", model=None, params=_NO_PARAMETERS, timeout=timeout)
    request_id = new_request_id()
    request = WireRequest(method="GET", path="/v1/models")
    send, reply = yield from _attempts(route, request, call, request_id, _Deadline(route, timeout))
    try:
        raw = load_json(reply.body)
        return [ModelInfo.model_validate(entry) for entry in raw["data"]]
    except (KeyError, TypeError, ValueError):
        raise InvalidResponseError(
            "The answer is not a list of models.", endpoint=send.endpoint.url, request_id=request_id
        ) from None
    except InvalidResponseError as exc:
        raise _located(exc, send, request_id) from None


def new_request_id() -> str:
    """Return a fresh request id, sent as `X-Request-Id`."""
    return f"myllm-{uuid.uuid4().hex[:24]}"


def _with_model(route: Route, call: Call) -> Flow[Call]:
    """Fill in the model where the caller named none: the first one that the server serves."""
    if call.model is not None or route.dialect.name == "tgi":  # TGI serves one model and reads no name
        return call
    served = yield from models_flow(route, call.timeout)
    if not served:
        raise InvalidResponseError("The server lists no model.", hint="Name one with `model=`.")
    return replace(call, model=served[0].id)


class _Deadline:
    """The call's total time, as a point on the clock."""

    def __init__(self, route: Route, timeout: Timeout) -> None:
        self.clock = route.clock
        self.start = route.clock()
        self.total = timeout.total

    @property
    def elapsed(self) -> float:
        return self.clock() - self.start

    @property
    def remaining(self) -> float | None:
        return None if self.total is None else self.total - self.elapsed


def _attempts(
    route: Route, request: WireRequest, call: Call, request_id: str, deadline: _Deadline, stream: bool = False
) -> Flow[tuple[Send, Reply]]:
    """Send one request until it succeeds, may not be retried, or has used up its tries or its time."""
    turns = _Turns(route)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_retryable),
        stop=_stop(route, call.timeout, deadline),
        wait=lambda state: _wait(state, len(route.endpoints)),
        reraise=True,
    )
    state = tenacity.RetryCallState(retry_object=retrying, fn=None, args=(), kwargs={})
    retrying.begin()
    while True:
        do = retrying.iter(retry_state=state)
        if isinstance(do, DoAttempt):
            endpoint = turns.take()
            try:
                send = _send(
                    route, endpoint, request, call, request_id, deadline, state.attempt_number, stream
                )
                reply = yield send
                assert reply is not None  # the driver answers a Send with a Reply
                if reply.status >= 400:
                    raise error_from_reply(send, reply, route.dialect, request_id)
            except MyLLMError as exc:
                if isinstance(exc, ConnectError):
                    turns.dead.add(endpoint)
                state.set_exception((type(exc), exc, exc.__traceback__))
            else:
                return send, reply
        elif isinstance(do, DoSleep):
            state.prepare_for_next_attempt()
            if do > 0:
                yield Sleep(seconds=float(do))
        else:  # tenacity returns the result of the last attempt; ours left the loop above
            raise AssertionError(f"tenacity asked for {do!r}")


class _Turns:
    """The endpoints that the tries of one request go to: around the ring, past those found dead."""

    def __init__(self, route: Route) -> None:
        first = route.first()
        self._ring = deque((*route.endpoints[first:], *route.endpoints[:first]))
        self.dead: set[Endpoint] = set()

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


def _stop(route: Route, timeout: Timeout, deadline: _Deadline) -> Callable[[tenacity.RetryCallState], bool]:
    def stop(state: tenacity.RetryCallState) -> bool:
        tries = state.attempt_number
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, ConnectError):
            if tries < len(route.endpoints):
                return False  # another server may live
            if timeout.connect is not None and deadline.elapsed + state.upcoming_sleep >= timeout.connect:
                return True
        if (remaining := deadline.remaining) is not None and state.upcoming_sleep >= remaining:
            return True
        return tries > route.max_retries

    return stop


_backoff = tenacity.wait_exponential(multiplier=0.25, max=8.0) + tenacity.wait_random(0, 0.25)


def _wait(state: tenacity.RetryCallState, endpoints: int) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimitError | OverloadedError | ServerError) and error.retry_after is not None:
        return error.retry_after
    if state.attempt_number < endpoints:
        return 0.0  # the next endpoint has done nothing to be waited for
    return float(_backoff(state))


def _send(
    route: Route,
    endpoint: Endpoint,
    request: WireRequest,
    call: Call,
    request_id: str,
    deadline: _Deadline,
    attempt: int,
    stream: bool,
) -> Send:
    headers = {
        "Accept": "text/event-stream" if stream else "application/json",
        "User-Agent": f"myllm/{__version__}",
        "X-Request-Id": request_id,
        "X-Retry-Count": str(attempt - 1),
        **route.headers,
        **call.extra_headers,
    }
    if endpoint.api_key is not None:
        headers.setdefault("Authorization", f"Bearer {endpoint.api_key}")
    timeout = call.timeout
    if (remaining := deadline.remaining) is not None:
        if remaining <= 0:
            raise RequestTimeoutError(
                f"The deadline of {timeout.total:g} s passed before the request could be sent.",
                phase="total",
                endpoint=endpoint.url,
                request_id=request_id,
            )
        timeout = replace(timeout, total=remaining)
    return Send(request=request, endpoint=endpoint, headers=headers, timeout=timeout, stream=stream)


def _located(error: InvalidResponseError, send: Send, request_id: str) -> InvalidResponseError:
    error.endpoint, error.request_id = send.endpoint.url, request_id
    return error
