"""Requests out, replies in: the sync and the async transport of the drivers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import httpcore

from .. import tap
from ..errors import ConnectError, InvalidParameterError, MyLLMError
from ..wire import Reply, Send
from .connections import AsyncConnections, AsyncExchange, Connections, Exchange
from .faults import deadline_error, error_from_httpcore
from .network import Waits, Wire
from .options import HTTPOptions

DRAIN = 0.05
"""Seconds that the end of a stream is waited for once it has told everything."""

_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_FAULTS = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError)


class HTTPTransport:
    """Sends for the sync driver. Thread-safe; the connections are shared by all threads."""

    def __init__(self, options: HTTPOptions, max_concurrency: int | None = None) -> None:
        self._options = options
        self._connections = Connections(options, max_concurrency)

    def send(self, action: Send, watch: Callable[[Wire], object] | None = None) -> Reply:
        """Send a request and read the reply; leave the body open if it is a stream below 300.

        `watch` is called with what can shut the connection down from another thread.

        Raises:
            ConnectError, ConnectTimeoutError, RequestTimeoutError: no reply.
            CassetteMiss: a cassette replays, and has not recorded this request.
            MyLLMError: the client was closed.
        """
        between = tap.active
        if between is not None:
            return between.send(action, self._options, lambda: self._send(action, watch))
        return self._send(action, watch)

    def _send(self, action: Send, watch: Callable[[Wire], object] | None) -> Reply:
        headers, content = encoded(action)
        try:
            exchange = self._connections.open(
                action.endpoint, action.request.method, action.request.path, headers, content,
                action.timeout, action.deadline, watch, action.at_once,
            )  # fmt: skip
        except _FAULTS as exc:
            raise _translated(exc, action) from None
        body = OpenBody(exchange, action)
        if action.stream and exchange.status < 300:
            return Reply(status=exchange.status, headers=exchange.headers, stream=body, send=action)
        with body:
            content = b"".join(body)
        return Reply(status=exchange.status, headers=exchange.headers, body=content, send=action)

    def close(self) -> None:
        """Close the connections; nothing can be sent afterwards."""
        self._connections.close()


class OpenBody:
    """A reply's body on its way: an iterator of byte strings, closed with the context."""

    def __init__(self, exchange: Exchange, action: Send) -> None:
        self._exchange = exchange
        self._action = action

    def __iter__(self) -> Iterator[bytes]:
        deadline = self._action.deadline
        try:
            for data in self._exchange:
                yield data
                if deadline is not None and time.monotonic() > deadline:
                    raise deadline_error(self._action)  # what was read at once may take its reader long
        except _FAULTS as exc:
            raise _translated(exc, self._action, self._exchange.waits) from None

    def __enter__(self) -> OpenBody:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def finish(self) -> None:
        """Leave a body that has told everything, so that its connection can be used again."""
        self._exchange.finish(DRAIN)

    def close(self) -> None:
        """Close the connection unless the body was read to its end; the server then aborts the request."""
        self._exchange.close()

    def abort(self) -> None:
        """Break the connection off, from any thread: whoever reads from it sees it end, and closes it."""
        self._exchange.abort()

    def abandon(self) -> None:
        """Break off and close a body that nobody reads any more."""
        self._exchange.abandon()


class AsyncHTTPTransport:
    """Sends for the async driver; each event loop has connections of its own."""

    def __init__(self, options: HTTPOptions, max_concurrency: int | None = None) -> None:
        self._options = options
        self._connections = AsyncConnections(options, max_concurrency)

    async def send(self, action: Send) -> Reply:
        """See `HTTPTransport.send`."""
        between = tap.active
        if between is not None:
            return await between.send_async(action, self._options, lambda: self._send(action))
        return await self._send(action)

    async def _send(self, action: Send) -> Reply:
        headers, content = encoded(action)
        try:
            exchange = await self._connections.open(
                action.endpoint, action.request.method, action.request.path, headers, content,
                action.timeout, action.deadline, action.at_once,
            )  # fmt: skip
        except _FAULTS as exc:
            raise _translated(exc, action) from None
        body = AsyncOpenBody(exchange, action)
        if action.stream and exchange.status < 300:
            return Reply(status=exchange.status, headers=exchange.headers, stream=body, send=action)
        async with body:
            content = b"".join([data async for data in body])
        return Reply(status=exchange.status, headers=exchange.headers, body=content, send=action)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        await self._connections.close()


class AsyncOpenBody:
    """`OpenBody` for the async driver."""

    def __init__(self, exchange: AsyncExchange, action: Send) -> None:
        self._exchange = exchange
        self._action = action

    async def __aiter__(self) -> AsyncIterator[bytes]:
        deadline = self._action.deadline
        try:
            async for data in self._exchange:
                yield data
                if deadline is not None and time.monotonic() > deadline:
                    raise deadline_error(self._action)
        except _FAULTS as exc:
            raise _translated(exc, self._action, self._exchange.waits) from None

    async def __aenter__(self) -> AsyncOpenBody:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def finish(self) -> None:
        """See `OpenBody.finish`."""
        await self._exchange.finish(DRAIN)

    async def close(self) -> None:
        """See `OpenBody.close`."""
        await self._exchange.close()

    def abort(self) -> None:
        """See `OpenBody.abort`."""
        self._exchange.abort()

    def abandon(self) -> None:
        """See `OpenBody.abandon`; from any thread."""
        self._exchange.abandon()


def encoded(action: Send) -> tuple[Mapping[str, str], bytes | None]:
    """Return a request's headers and body as they are sent.

    Raises:
        InvalidParameterError: the body is nothing that JSON can say.
    """
    body = action.request.json
    if body is None:
        return action.headers, action.request.content
    try:
        content = _encoder.encode(body).encode()
    except (TypeError, ValueError) as exc:  # a lone surrogate is a ValueError too
        raise InvalidParameterError(f"The request cannot be written as JSON: {exc}.") from exc
    return {**action.headers, "Content-Type": "application/json"}, content


def _translated(exc: Exception, action: Send, waits: Waits | None = None) -> MyLLMError:
    error = error_from_httpcore(exc, action, waits)
    if not isinstance(error, ConnectError) or error.connected:
        # A refused connection has a hundred lines of causes that tell no more than its message does.
        error.__cause__ = exc
    return error
