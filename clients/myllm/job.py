"""The tries of one call, without I/O: which server, what is sent, and whether to try again.

The parts of a flow: a generator yields what it wants done, is sent the `Reply` or thrown the error.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import tenacity

from . import hooks, messages, tap
from ._version import __version__
from .balancer import Balancer, Lease
from .cache import Cache
from .diagnosis import error_from_reply
from .dialects import Dialect, get_dialect
from .dialects._base import load_json
from .dialects.detect import UndecidedError, detect
from .endpoints import Endpoint
from .errors import (
    AllEndpointsDown,
    APIStatusError,
    ConnectError,
    ContextLengthError,
    InvalidResponseError,
    MyLLMError,
    NotFoundError,
    RequestTimeoutError,
)
from .headers import merged
from .hooks import CallRecord, Hook
from .limits import RateLimiter, RetryBudget
from .types import Answer, ModelInfo
from .wire import Action, Call, Reply, Send, ServerInfo, Sleep, WireRequest

T = TypeVar("T")
Flow = Generator[Action, Reply | bytes | None, T]

RETRIED_STATUSES = frozenset({408, 409, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more with `Retry-After` is not waited for: the caller decides."""
LONGEST_QUESTION = 30.0
"""Seconds that a server gets to say what it is or what it serves."""
TRIAL_CONNECT = 1.0
"""Seconds that a server which was down gets to accept its trial's connection, while others could have it."""

_log = logging.getLogger("myllm")


@dataclass(slots=True, kw_only=True)
class Route:
    """Where the calls of one client go, and how hard they try. Shared by its calls; thread-safe.

    Attributes:
        dialect: of all servers; None asks each server what it is.
        hedge_after: seconds without an answer after which another server is asked too; None: never.
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
    message_policy: messages.MessagePolicy = "as_is"
    hooks: Sequence[Hook] = ()
    cache: Cache | None = None
    clock: Callable[[], float] = time.monotonic
    roles: dict[tuple[int, str | None], messages.MessagePolicy] = field(default_factory=dict)

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The servers."""
        return self.balancer.endpoints


@dataclass(slots=True, kw_only=True)
class Done:
    """How a call's requests ended well: the replies, who gave them, and the open lease of a stream."""

    call: Call
    dialect: Dialect
    server: ServerInfo
    replies: list[Reply]
    lease: Lease

    @property
    def endpoint(self) -> str:
        """Base URL of the server that answered: the hedge's, where that was faster."""
        last = self.replies[-1].send if self.replies else None
        return self.lease.endpoint.url if last is None else last.endpoint.url


Build = Callable[[Dialect, Call, ServerInfo], list[WireRequest]]


def _requests(dialect: Dialect, call: Call, server: ServerInfo) -> list[WireRequest]:
    return dialect.requests(call, server)


class Job:
    """One call on its way: its tries, its deadline and its request id, whatever it sends."""

    def __init__(self, route: Route, call: Call) -> None:
        self.route = route
        self.call = call
        self.hooks = (*hooks.everywhere, *route.hooks)
        self.request_id = new_request_id()
        self.started = route.clock()
        self.deadline = None if call.timeout.total is None else self.started + call.timeout.total
        self.record = CallRecord(call, self.request_id, self.started) if self.hooks else None
        self._tries = 0
        self._tried: dict[Endpoint, MyLLMError] = {}
        self._hedge: Lease | None = None
        self._retrying: _Retrying | None = None
        self._key = _affinity_key(call) if call.session or route.balancer.policy.keyed else None
        self._more_headers: dict[str, str] = {}

    def run(self, build: Build = _requests, *, stream: bool = False) -> Flow[Done]:
        """Send what a call is made of until it is answered, or may not be tried again."""
        plan: list[WireRequest] = []
        replies: list[Reply] = []
        while True:
            lease = self.route.balancer.take(self._tried, self._key)
            self._tries += 1
            try:
                dialect, server = yield from self._server(lease)
                call = yield from self._named(lease, dialect, server)
                call = self._with_roles(call)
                wanted = build(dialect, call, server)
                if wanted != plan:  # another server may want other requests, and then all of them
                    plan, replies = wanted, []
                while len(replies) < len(plan):
                    reply = yield from self._exchange(lease, plan[len(replies)], dialect, stream)
                    replies.append(reply)
                lease.began() if stream else lease.succeeded()
                self.route.budget.succeeded()
                return Done(call=call, dialect=dialect, server=server, replies=replies, lease=lease)
            except MyLLMError as exc:
                self.account(lease, exc)
                if self._mended(exc):
                    continue
                yield from self._sleep(self._wait_before_retry(lease.endpoint, exc))
            except BaseException:  # cancelled, or closed half way
                lease.released()
                raise

    def model_name(self) -> Flow[str | None]:
        """Return the call's model, or where the caller named none the first one that is served."""
        known = [self.call.model, *(server.model for server in self.route.balancer.servers())]
        for name in known:
            if name is not None:
                return name
        done = yield from self.run(lambda dialect, call, server: [])
        return done.call.model

    def _server(self, lease: Lease) -> Flow[tuple[Dialect, ServerInfo]]:
        """Return what a server is, asking it where that must be known and is not."""
        route, info = self.route, lease.server.info
        if info is None and route.dialect is not None and not route.dialect.depends_on_server(self.call):
            info = ServerInfo(dialect=route.dialect.name)
        elif info is None:
            info = lease.server.info = yield from self.identify(lease)
        if self.record is not None:
            self.record.server = info
        return route.dialect or get_dialect(info.dialect), info

    def identify(self, lease: Lease) -> Flow[ServerInfo]:
        """Ask a server what it is."""
        known = self.route.dialect.name if self.route.dialect is not None else None
        questions = detect(known)
        answered: Reply | None = None
        while True:
            try:
                with located(lease.endpoint.url, self.request_id):
                    request = next(questions) if answered is None else questions.send(answered)
            except StopIteration as stop:
                info: ServerInfo = stop.value
                return info
            except UndecidedError as exc:
                raise self._refusal(lease, exc.reply, get_dialect("openai")) from None
            reply = yield self._send(lease.endpoint, request)
            assert isinstance(reply, Reply)
            answered = reply

    def _named(self, lease: Lease, dialect: Dialect, server: ServerInfo) -> Flow[Call]:
        """Return the call with a model's name."""
        # TGI serves one model and reads no name.
        if self.call.model is not None or dialect.name == "tgi":
            return self.call
        state = lease.server
        if state.model is None:
            listed = server.models
            if not listed:
                request = WireRequest(method="GET", path="/v1/models")
                reply = yield from self._exchange(lease, request, dialect, stream=False)
                listed = tuple(model_list(reply, lease.endpoint.url, self.request_id))
            if not listed:
                raise InvalidResponseError(
                    "The server lists no model.", hint="Name one with `model=`.", endpoint=lease.endpoint.url
                )
            state.model = listed[0].id
        return replace(self.call, model=state.model)

    def _with_roles(self, call: Call) -> Call:
        """Return the call with its messages as the message policy wants them."""
        policy = self.route.message_policy
        if policy == "auto":
            policy = self.route.roles.get((tap.changes, call.model), "as_is")
        if call.messages is None or policy == "as_is":
            return call
        return replace(call, messages=messages.apply(policy, call.messages))

    def _mended(self, error: MyLLMError) -> bool:
        """Under the message policy "auto": whether the server's refusal says which policy it wants."""
        if self.route.message_policy != "auto" or self.call.messages is None:
            return False
        wanted = messages.refused_roles(error)
        key = tap.changes, self.call.model
        if wanted is None or self.route.roles.get(key) in (wanted, "alternate"):
            return False
        _log.warning(
            "%s: the model's chat template is strict about roles; from now on the messages are sent under "
            "message_policy=%r",
            error.endpoint,
            wanted,
        )
        self.route.roles[key] = wanted
        return True

    def _exchange(self, lease: Lease, request: WireRequest, dialect: Dialect, stream: bool) -> Flow[Reply]:
        """Send one request once; anything but a success is an error."""
        send = self._send(lease.endpoint, request, stream=stream)
        if lease.server.open_until is not None and len(self.route.endpoints) > 1:
            limit = min(send.timeout.connect or TRIAL_CONNECT, TRIAL_CONNECT)
            send = replace(send, timeout=replace(send.timeout, connect=limit))
        if self.route.hedge_after is not None and not stream and request.method == "POST":
            send = replace(send, backup=lambda: self._backup(send), backup_after=self.route.hedge_after)
        try:
            reply = yield send
        finally:
            hedge, self._hedge = self._hedge, None
            if hedge is not None:
                hedge.released()
        assert isinstance(reply, Reply)
        assert reply.send is not None
        if reply.send.endpoint != lease.endpoint:
            lease.released()  # too slow to be told how it went
        if reply.status >= 300:
            raise self._refusal(lease, reply, dialect)
        if self.record is not None:
            self.record.endpoint = reply.send.endpoint.url
        return reply

    def _refusal(self, lease: Lease, reply: Reply, dialect: Dialect) -> APIStatusError:
        assert reply.send is not None
        served = [model.id for model in lease.server.info.models] if lease.server.info else ()
        error = error_from_reply(reply.send, reply, dialect, self.request_id, served)
        if isinstance(error, NotFoundError):
            lease.server.info = lease.server.model = None  # it may serve another model by now
        return error

    def _send(self, endpoint: Endpoint, request: WireRequest, *, stream: bool = False) -> Send:
        timeout = self.call.timeout
        if request.method == "GET":  # questions, which a server that works answers at once
            timeout = replace(timeout, first_byte=_least(timeout.first_byte, LONGEST_QUESTION))
        if self.deadline is not None and self.route.clock() >= self.deadline:
            raise RequestTimeoutError(
                f"The deadline of {timeout.total:g} s passed before the request could be sent.",
                phase="total",
                endpoint=endpoint.url,
                request_id=self.request_id,
            )
        headers = merged(
            {
                "Accept": "text/event-stream" if stream else "application/json",
                "Accept-Encoding": "identity",
                "User-Agent": f"myllm/{__version__}",
                "X-Request-Id": self.request_id,
                "X-Retry-Count": str(max(0, self._tries - 1)),
            },
            {} if endpoint.api_key is None else {"Authorization": f"Bearer {endpoint.api_key}"},
            self.route.headers,
            self._more_headers,
            self.call.extra_headers,
        )
        send = Send(
            request=request,
            endpoint=endpoint,
            headers=headers,
            timeout=timeout,
            deadline=self.deadline,
            stream=stream,
        )
        _log.debug(
            "%s %s%s, try %d of %s", request.method, endpoint.url, request.path, self._tries, self.request_id
        )
        if self.record is not None:
            self.record.attempts += 1
            self.record.endpoint = endpoint.url
            for hook in self.hooks:
                hook.sending(self.record, send)
        return send

    def _backup(self, first: Send) -> Send | None:
        """Make the hedge: the same request for another server that is well."""
        lease = self.route.balancer.other(first.endpoint, self._key)
        if lease is None:
            return None
        self._hedge = lease
        _log.debug("%s is slow; %s is asked too", first.endpoint.url, lease.endpoint.url)
        return self._send(lease.endpoint, first.request)

    def account(self, lease: Lease, error: MyLLMError) -> None:
        """Tell the balancer, and the hooks, of a failed try."""
        lease.ended(error)
        if self.record is not None:
            for hook in self.hooks:
                hook.failed(self.record, error)

    def _wait_before_retry(self, endpoint: Endpoint, error: MyLLMError) -> float:
        """Return the seconds until the next try.

        Raises:
            MyLLMError: `error`, when there is to be none; `AllEndpointsDown`, when that was the last server.
        """
        self._tried[endpoint] = error
        if self._retrying is None:
            self._retrying = _Retrying(self)
        try:
            wait = self._retrying.after(error)
        except ConnectError:
            errors = {server.url: self._tried.get(server) for server in self.route.endpoints}
            down = {url: exc for url, exc in errors.items() if isinstance(exc, ConnectError)}
            if len(down) < 2 or len(down) < len(errors):
                raise
            each = " ".join(f"[{url}] {exc.message}" for url, exc in down.items())
            raise AllEndpointsDown(
                f"None of {len(down)} servers could be reached: {each}",
                errors=down,
                request_id=self.request_id,
                hint="Are they running, and are `url` and `port` right?",
            ) from None
        _log.debug("%s: %s Next try in %.2f s.", endpoint.url, error, wait)
        return wait

    def keep_to_the_rate(self) -> Flow[None]:
        """Wait for the call's place under `requests_per_second`."""
        if self.route.limiter is None:
            return
        wait = self.route.limiter.reserve(self.call.timeout.total)
        if wait is None:
            raise RequestTimeoutError(
                f"`requests_per_second={self.route.limiter.per_second:g}` has no place for this call before "
                f"its deadline of {self.call.timeout.total:g} s.",
                phase="total",
                request_id=self.request_id,
            )
        yield from self._sleep(wait)

    @staticmethod
    def _sleep(seconds: float) -> Flow[None]:
        if seconds > 0:
            yield Sleep(seconds=seconds)

    # Whether and when to try again.

    def stop(self, state: tenacity.RetryCallState) -> bool:
        """Whether the try that failed was the last one (tenacity's `stop`)."""
        error = state.outcome.exception() if state.outcome else None
        untried = len(self._tried) < len(self.route.endpoints)
        now = self.route.clock()
        if isinstance(error, ConnectError) and not error.connected:
            if untried:
                return False  # another server may live
            connect = self.call.timeout.connect
            if connect is not None and now - self.started + state.upcoming_sleep >= connect:
                return True
        if self.deadline is not None and now + state.upcoming_sleep >= self.deadline:
            return True
        if state.upcoming_sleep > LONGEST_WAIT or state.attempt_number > self.route.max_retries:
            return True
        return not self.route.budget.spend()

    def wait(self, state: tenacity.RetryCallState) -> float:
        """Return the seconds until the next try (tenacity's `wait`)."""
        error = state.outcome.exception() if state.outcome else None
        if len(self._tried) < len(self.route.endpoints):
            return 0.0  # the next server has done nothing to be waited for
        if isinstance(error, APIStatusError) and error.retry_after is not None:
            return error.retry_after
        return float(_backoff(state))

    # What hooks see.

    def begin(self) -> None:
        """Tell the hooks that the call begins."""
        if self.record is not None:
            for hook in self.hooks:
                hook.started(self.record)
                self._more_headers.update(hook.headers(self.record))

    def end(self, answer: Answer | None = None, error: BaseException | None = None) -> None:
        """Tell the hooks that the call ended, and how."""
        if self.record is not None and self.record.ended is None:
            self.record.ended = self.route.clock()
            self.record.answer = answer
            self.record.error = error if isinstance(error, MyLLMError) else None
            for hook in self.hooks:
                hook.ended(self.record)

    def first_chunk(self) -> None:
        """Tell the hooks that a stream has begun to tell."""
        if self.record is not None:
            self.record.first_chunk = self.route.clock()
            for hook in self.hooks:
                hook.first_chunk(self.record)


class _Retrying:
    """tenacity's loop turned inside out: told of a failure, it says how long to wait, or raises it."""

    def __init__(self, job: Job) -> None:
        self._policy = tenacity.Retrying(
            retry=tenacity.retry_if_exception(is_retryable), stop=job.stop, wait=job.wait, reraise=True
        )
        self._state = tenacity.RetryCallState(retry_object=self._policy, fn=None, args=(), kwargs={})
        self._policy.begin()
        self._policy.iter(retry_state=self._state)  # the try that has failed already

    def after(self, error: MyLLMError) -> float:
        self._state.set_exception((type(error), error, error.__traceback__))
        wait = self._policy.iter(retry_state=self._state)
        assert isinstance(wait, tenacity.DoSleep)
        self._state.prepare_for_next_attempt()
        self._policy.iter(retry_state=self._state)
        return float(wait)


def _least(limit: float | None, other: float) -> float:
    return other if limit is None else min(limit, other)


def is_retryable(error: BaseException) -> bool:
    """Whether a second try could go better: connection trouble and the statuses 408, 409, 429, 5xx."""
    if isinstance(error, ConnectError):
        return True
    if isinstance(error, RequestTimeoutError):
        return False  # It had its time; asking again would double it and leave two requests running.
    if isinstance(error, ContextLengthError):
        return False  # llama-cpp-python says 500 for it
    return isinstance(error, MyLLMError) and error.status in RETRIED_STATUSES


_backoff = tenacity.wait_exponential(multiplier=0.25, max=8.0) + tenacity.wait_random(0, 0.25)


def new_request_id() -> str:
    """Return a fresh request id, sent as `X-Request-Id`."""
    return uuid.uuid4().hex  # llama-cpp-python's server answers 400 to any id that is no UUID


def model_list(reply: Reply, endpoint: str, request_id: str) -> list[ModelInfo]:
    """Read the answer of `GET /v1/models`.

    Raises:
        InvalidResponseError: it is none.
    """
    with located(endpoint, request_id):
        return [ModelInfo.model_validate(entry) for entry in load_json(reply.body)["data"]]


def _affinity_key(call: Call) -> str:
    """Return what calls that should share a server's prefix cache have in common: session, or beginning."""
    if call.session is not None:
        return call.session
    if call.messages is not None:
        return repr(call.messages[:2])[:2048]  # the system prompt and the first question of a conversation
    return repr(call.prompt)[:1024] if call.prompt is not None else ""


@contextmanager
def located(endpoint: str, request_id: str) -> Iterator[None]:
    """Say where a bad answer came from; whatever its reading stumbles over is a bad answer."""
    try:
        yield
    except MyLLMError as exc:
        located_error(exc, endpoint, request_id)
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise located_error(exc, endpoint, request_id) from exc


def located_error(exc: Exception, endpoint: str, request_id: str) -> MyLLMError:
    """Return what the reading of an answer stumbled over, as an error that says where it came from."""
    if isinstance(exc, MyLLMError):
        exc.endpoint, exc.request_id = endpoint, request_id
        return exc
    if not isinstance(exc, KeyError | TypeError | ValueError | AttributeError):
        raise exc
    words = (str(exc).splitlines() or [""])[0]
    return InvalidResponseError(
        f"The answer is not of this API ({type(exc).__name__}: {words}).",
        endpoint=endpoint,
        request_id=request_id,
        hint="Is `dialect=` right for this server?",
    )
