"""Answer with JSON or with a stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

import orjson
from fastapi import Response
from starlette.types import Receive, Scope, Send

# nginx buffers an answer unless told not to, and a buffered stream is none.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
# A comment, which readers of server-sent events skip: proxies cut connections on which nothing comes.
_KEEP_ALIVE = b": keep-alive\n\n"


def json_response(content: Any, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with `content` as JSON."""
    return Response(orjson.dumps(content), status_code, headers, media_type="application/json")


class Closable(Protocol):
    """Be something whose end must be waited for."""

    async def aclose(self) -> None:
        """End it."""


class EventStream(Response):
    """Send server-sent events, already encoded; end the source when the client goes away.

    Unlike starlette's StreamingResponse it closes `events` and `source` itself, whatever ends the stream and
    even when it never began: `source` is what makes the engine work, and must not outlive its reader.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        source: Closable,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._source = source
        self.init_headers({**STREAM_HEADERS, **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the events or the client end."""
        interval = scope["app"].state.context.settings.http.sse_keep_alive_interval
        events = _with_keep_alive(self._events, interval) if interval else self._events
        sender = asyncio.ensure_future(self._send(events, send))
        listener = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sender, listener), return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        except OSError:
            pass  # The connection broke while sending: there is nobody left to tell.
        finally:
            sender.cancel()
            listener.cancel()
            await asyncio.gather(sender, listener, return_exceptions=True)
            await events.aclose()
            await self._events.aclose()
            await self._source.aclose()

    async def _send(self, events: AsyncGenerator[bytes, None], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _with_keep_alive(
    events: AsyncGenerator[bytes, None], interval: float
) -> AsyncGenerator[bytes, None]:
    """Hand the events on, and a comment whenever none has come for `interval` seconds."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait((coming,), timeout=interval)
            if not coming.done():
                yield _KEEP_ALIVE
                continue
            event = coming.result()
            if event is None:
                return
            yield event
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
