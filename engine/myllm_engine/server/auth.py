"""Ask for an API key."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from hashlib import sha256

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import Kind, Problem
from .exchange import current
from .paths import route_path
from .ui import page

# What a load balancer or a browser must reach without a key: liveness, the API's description, and the page,
# whose data needs a key.
OPEN_PATHS = page.PATHS | {"/health", "/ping", "/version", "/docs", "/redoc", "/openapi.json"}


class ApiKeyMiddleware:
    """Let a request pass when it brings one of the keys as `Authorization: Bearer <key>` or `x-api-key`.

    Plain ASGI, ahead of routing: a request without a key is refused before its body is read. `OPTIONS`
    (CORS preflight brings no key), `OPEN_PATHS` and `GET /`, TGI's health check, are open. `render` words the
    refusal for a path.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Iterable[str], render: Callable[[str, Problem], Response]
    ) -> None:
        self.app = app
        self._render = render
        self._digests = [sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the application or answer 401."""
        if scope["type"] != "http" or self._is_open(scope) or self._has_key(Request(scope)):
            await self.app(scope, receive, send)
            return
        problem = Problem(
            Kind.UNAUTHORIZED,
            "Unauthorized: send one of the server's API keys as `Authorization: Bearer <key>`",
            headers={"WWW-Authenticate": "Bearer"},
        )
        exchange = current.get()
        if exchange is not None:
            exchange.failure = problem.kind.value
        await self._render(route_path(scope), problem)(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        path, method = route_path(scope), scope["method"]
        return method == "OPTIONS" or path in OPEN_PATHS or (path == "/" and method in ("GET", "HEAD"))

    def _has_key(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        # The second one is how Anthropic's clients bring it.
        keys = [key if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")]
        digests = [sha256(key.strip().encode()).digest() for key in keys]
        # Digests are compared, all of them, so that the time taken tells nothing about a key.
        matches = [hmac.compare_digest(one, known) for one in digests for known in self._digests]
        return any(matches)
