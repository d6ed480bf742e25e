"""Know the requests that are being answered: how many, since when, and how they went."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import LEFT, Kind, Problem
from .exchange import Exchange, current
from .http_settings import HttpSettings
from .paths import route_path

# What is posted here keeps the engine at work.
GENERATING = frozenset(
    {
        "/",
        "/generate",
        "/generate_stream",
        "/invocations",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/responses",
        "/vertex",
    }
)

# An id goes into logs and headers: one word, of a length that nobody minds.
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


@dataclass(slots=True)
class Traffic:
    """Count the requests that make the engine work. Used by the event loop alone.

    Attributes:
        draining: the server is about to end: it finishes what it has, and takes nothing more.
        in_flight: requests that are being answered.
        received: requests that came.
        succeeded: those that were answered, to the end.
        failed: those that were not, by the kind of their failure; "dropped" where the client left.
    """

    draining: bool = False
    in_flight: int = 0
    received: int = 0
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class TrafficMiddleware:
    """Open an `Exchange` for each request, count it, and refuse it when there is no room for it.

    Args:
        app: what serves requests.
        traffic: where they are counted.
        http: `root_path`, `request_timeout` and `enable_request_id_headers` are put to work here.
        limit: requests that may be answered at once; None: no limit.
        render: words a refusal for a path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        traffic: Traffic,
        http: HttpSettings,
        limit: int | None,
        render: Callable[[str, Problem], Response],
    ) -> None:
        self.app = app
        self._traffic = traffic
        self._http = http
        self._limit = limit
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the application within an exchange."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._http.root_path:
            scope = {**scope, "root_path": self._http.root_path}
        timeout = self._http.request_timeout
        exchange = Exchange(
            _request_id(scope),
            scope["headers"],
            deadline=None if timeout is None else time.monotonic() + timeout,
        )
        if self._http.enable_request_id_headers:
            send = _with_header(send, b"x-request-id", exchange.request_id.encode())
        token = current.set(exchange)
        try:
            if scope["method"] == "POST" and route_path(scope) in GENERATING:
                await self._count(scope, receive, send, exchange)
            else:
                await self.app(scope, receive, send)
        finally:
            current.reset(token)

    async def _count(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        traffic = self._traffic
        status, complete = 0, False

        async def watch(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not message.get("more_body", False):
                complete = True
            await send(message)

        refusal = self._refusal()
        traffic.received += 1
        traffic.in_flight += 1
        try:
            if refusal is None:
                await self.app(scope, receive, watch)
            else:
                exchange.failure = refusal.kind.value
                await self._render(route_path(scope), refusal)(scope, receive, watch)
        finally:
            traffic.in_flight -= 1
            if exchange.failure is not None:
                traffic.failed[exchange.failure] += 1
            elif complete and status < 400:
                traffic.succeeded += 1
            elif not complete or status == LEFT:
                traffic.failed["dropped"] += 1

    def _refusal(self) -> Problem | None:
        traffic = self._traffic
        if traffic.draining:
            return Problem(
                Kind.OVERLOADED,
                "The server is about to end, and takes no more requests: ask another one, or try again later",
                headers={"Retry-After": "1", "Connection": "close"},
            )
        if self._limit is not None and traffic.in_flight >= self._limit:
            return Problem(
                Kind.OVERLOADED,
                f"{traffic.in_flight} requests are being answered, the most that this server takes on at "
                "once (its --max-concurrent-requests): try again later",
                headers={"Retry-After": "1"},
            )
        return None


def _request_id(scope: Scope) -> str:
    """Return the id that the client has given, if it can stand in logs and headers, else a new one."""
    given: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _with_header(send: Send, name: bytes, value: bytes) -> Send:
    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (name, value)]}
        await send(message)

    return send_with_header
