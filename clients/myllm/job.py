"""The tries of one call, without I/O: which server, what is sent, and whether to try again.

The parts of a flow: a generator yields what it wants done, is sent the `Reply` or thrown the error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from . import messages, tap
from ._version import __version__
from .balancer import Lease
from .diagnosis import error_from_reply
from .dialects import Dialect, get_dialect
from .dialects.detect import UndecidedError, detect
from .endpoints import Endpoint
from .errors import APIStatusError, InvalidResponseError, MyLLMError, NotFoundError, RequestTimeoutError
from .headers import merged
from .hooks import Watch
from .reading import located, model_list
from .redaction import secrets_of
from .retry import Retries
from .route import Route
from .wire import Action, Call, Reply, Send, ServerInfo, Sleep, WireRequest, new_request_id

T = TypeVar("T")
Flow = Generator[Action, Reply | bytes | None, T]

LONGEST_QUESTION = 30.0
"""Seconds that a server gets to say what it is or what it serves."""
TRIAL_CONNECT = 1.0
"""Seconds that a server which was down gets to accept its trial's connection, while others could have it."""

_log = logging.getLogger("myllm")


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
        self.request_id = new_request_id()
        self.started = route.clock()
        self.deadline = None if call.timeout.total is None else self.started + call.timeout.total
        self.watch = Watch(route.hooks, call, self.request_id, route.clock)
        self._tries = 0
        self._retries = Retries(
            route, started=self.started, deadline=self.deadline, connect=call.timeout.connect
        )
        self._hedge: Lease | None = None
        self._again: Callable[[Lease], WireRequest | None] | None = None
        self._model = call.model
        self._key = _affinity_key(call) if call.session or route.balancer.keyed else None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What may not show in errors, though a server may repeat it."""
        route = self.route
        keys = [endpoint.api_key for endpoint in route.endpoints]
        return secrets_of(merged(route.headers, self.call.extra_headers), keys, route.http)

    def run(self, build: Build = _requests, *, stream: bool = False) -> Flow[Done]:
        """Send what a call is made of until it is answered, or may not be tried again."""
        plan: list[WireRequest] = []
        replies: list[Reply] = []
        while True:
            lease = self.route.balancer.take(self._retries.avoid(), self._key)
            self._tries += 1
            try:
                dialect, server = yield from self._server(lease)
                call = yield from self._named(lease, dialect, server)
                call = self.with_roles(call)
                self._model = call.model
                wanted = build(dialect, call, server)
                if wanted != plan:  # another server may want other requests, and then all of them
                    plan, replies = wanted, []
                while len(replies) < len(plan):
                    self._again = partial(self._for_another, build, dialect, len(replies), len(plan))
                    reply = yield from self._exchange(lease, plan[len(replies)], dialect, stream)
                    replies.append(reply)
                lease.began() if stream else lease.succeeded()
                self.route.budget.succeeded()
                return Done(call=call, dialect=dialect, server=server, replies=replies, lease=lease)
            except MyLLMError as exc:
                self.account(lease, exc)
                if self._mended(exc) or self._renamed(exc):
                    continue
                wait = self._retries.after(lease.endpoint, exc)
                _log.debug("%s: %s Next try in %.2f s.", lease.endpoint.url, exc, wait)
                yield from self._sleep(wait)
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
        self.watch.asks(info)
        return route.dialect or get_dialect(info.dialect), info

    def identify(self, lease: Lease) -> Flow[ServerInfo]:
        """Ask a server what it is."""
        known = self.route.dialect.name if self.route.dialect is not None else None
        questions = detect(known)
        answered: Reply | None = None
        while True:
            try:
                with located(lease.endpoint.url, self.request_id, self.secrets):
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
                listed = tuple(model_list(reply, lease.endpoint.url, self.request_id, self.secrets))
            if not listed:
                raise InvalidResponseError(
                    "The server lists no model.", hint="Name one with `model=`.", endpoint=lease.endpoint.url
                )
            state.model = listed[0].id
        return replace(self.call, model=state.model)

    def with_roles(self, call: Call) -> Call:
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
        key = tap.changes, self._model
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

    def _renamed(self, error: MyLLMError) -> bool:
        """Whether the server may just serve another model by now than the one that was found there."""
        found = self.call.model is None and self._model is not None
        return found and isinstance(error, NotFoundError) and self._tries == 1

    def _exchange(self, lease: Lease, request: WireRequest, dialect: Dialect, stream: bool) -> Flow[Reply]:
        """Send one request once; anything but a success is an error."""
        send = self._send(lease.endpoint, request, stream=stream)
        if lease.server.open_until is not None and len(self.route.endpoints) > 1:
            limit = min(send.timeout.connect or TRIAL_CONNECT, TRIAL_CONNECT)
            send = replace(send, timeout=replace(send.timeout, connect=limit))
        if self.route.hedge_after is not None and not stream and request.method == "POST":
            send = replace(
                send,
                backup=lambda: self._backup(send),
                backup_after=self.route.hedge_after,
                lost=lambda result: self._lost(lease, dialect, result),
            )
        try:
            reply = yield send
        finally:
            hedge, self._hedge = self._hedge, None
            if hedge is not None:
                hedge.released()
        assert isinstance(reply, Reply)
        assert reply.send is not None
        if hedge is not None and reply.send.endpoint == hedge.endpoint:
            hedge.succeeded()
        if reply.status >= 300:
            raise self._refusal(lease, reply, dialect)
        self.watch.answered(reply.send.endpoint.url)
        return reply

    def _refusal(self, lease: Lease, reply: Reply, dialect: Dialect) -> APIStatusError:
        assert reply.send is not None
        info = lease.server.info  # another thread may forget it meanwhile
        served = [model.id for model in info.models] if info is not None else ()
        error = error_from_reply(reply.send, reply, dialect, self.request_id, served, self.secrets)
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
            self.watch.headers,
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
        self.watch.sends(send)
        return send

    def _backup(self, first: Send) -> Send | None:
        """Make the hedge: the same request for another server that is well."""
        lease = self.route.balancer.other(first.endpoint, self._key)
        if lease is None:
            return None
        request = self._again(lease) if self._again is not None else None
        # Servers under load must not get twice of it.
        if request is None or not self.route.budget.spend():
            lease.released()
            return None
        self._hedge = lease
        _log.debug("%s is slow; %s is asked too", first.endpoint.url, lease.endpoint.url)
        send = self._send(lease.endpoint, request)
        return replace(send, at_once=True, lost=lambda result: self._lost(lease, None, result))

    def _for_another(
        self, build: Build, dialect: Dialect, position: int, many: int, lease: Lease
    ) -> WireRequest | None:
        """Return what another server is to be sent for one of the call's requests, or None.

        It can stand in when all that has to be known of it is known, and its answer reads like the first's.
        """
        info = lease.server.info or ServerInfo(dialect=dialect.name)
        fixed = self.route.dialect is not None and not self.route.dialect.depends_on_server(self.call)
        model = self.call.model or lease.server.model
        known = (fixed or lease.server.info is not None) and (model is not None or dialect.name == "tgi")
        if info.dialect != dialect.name or not known:
            return None
        try:
            plan = build(dialect, self.with_roles(replace(self.call, model=model)), info)
        except MyLLMError:
            return None
        return plan[position] if len(plan) == many else None

    def _lost(self, lease: Lease, dialect: Dialect | None, result: Reply | Exception | None) -> None:
        """Account for the one of two racing requests that did not win."""
        url = lease.endpoint.url
        if isinstance(result, Reply):
            error: MyLLMError = self._refusal(lease, result, dialect or get_dialect("openai"))
        elif isinstance(result, MyLLMError):
            error = result
        elif dialect is not None:  # the first server, which was overtaken
            error = RequestTimeoutError(
                f"{url} was overtaken by another server.", phase="first_byte", endpoint=url
            )
        else:
            lease.released()
            return
        self.account(lease, error)

    def account(self, lease: Lease, error: MyLLMError) -> None:
        """Tell the balancer, and the hooks, of a failed try."""
        lease.ended(error)
        self.watch.failed(error)

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


def _least(limit: float | None, other: float) -> float:
    return other if limit is None else min(limit, other)


def _affinity_key(call: Call) -> str:
    """Return what calls that should share a server's prefix cache have in common: session, or beginning."""
    if call.session is not None:
        return call.session
    if call.messages is not None:
        return repr(call.messages[:2])  # the system prompt and the first question of a conversation
    return repr(call.prompt)[:1024] if call.prompt is not None else ""
