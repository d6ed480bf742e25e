"""Bound request bodies: their size, and the time that they take to come."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .deadline import in_time
from .errors import ProblemError


class BodyLimitMiddleware:
    """Refuse bodies of more than `limit` bytes with 413, and those that outlast the request's time with 504.

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
        received, complete = 0, False

        async def receive_within_limits() -> Message:
            nonlocal received, complete
            if complete:  # what still comes is the client's leaving
                return await receive()
            if expected > self._limit:
                raise self._refusal()
            try:
                message = await in_time(receive())
            except ProblemError as error:  # FastAPI would take any other exception for a broken body
                raise HTTPException(504, str(error)) from error
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._refusal()
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, receive_within_limits, send)

    def _refusal(self) -> HTTPException:
        return HTTPException(
            413,
            f"The body is larger than {self._limit} bytes, the most that this server takes (its "
            "--max-body-size)",
        )
