"""Bound the size of request bodies."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Refuse bodies of more than `limit` bytes with 413.

    The bytes are counted as they come, for `Content-Length` may be absent or wrong; where it tells the truth,
    nothing is read. The failure is raised where the body is read, inside a route, which words it as its
    dialect does.
    """

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the application, which reads through the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        # Digits only: int() alone takes signs and blanks, too.
        expected = int(announced) if announced.isdigit() else 0
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            if expected > self._limit:
                raise self._refusal()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._refusal()
            return message

        await self.app(scope, receive_within_limit, send)

    def _refusal(self) -> HTTPException:
        return HTTPException(
            413,
            f"The body is larger than {self._limit} bytes, the most that this server takes (its "
            "--max-body-size)",
        )
