"""Requests out, replies in: the sync and the async transport of the drivers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager

import httpx

from ..endpoints import Endpoint
from ..errors import ConnectError, InvalidParameterError, MyLLMError
from ..wire import Reply, Send
from .faults import deadline_error, deadline_of, error_from_httpx, least
from .options import HTTPOptions


class HTTPTransport:
    """Sends for the sync driver. Thread-safe; the connections are shared by all threads."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        options: HTTPOptions,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        arguments = options.client_arguments(endpoints)
        if transport is not None:
            arguments = {"transport": transport}
        self._client = httpx.Client(**arguments)
        weakref.finalize(self, self._client.close)  # a client that is dropped leaves no socket open

    def send(self, action: Send) -> Reply:
        """Send a request and read the reply; leave the body open if it is a stream below 300.

        Raises:
            ConnectError, ConnectTimeoutError, RequestTimeoutError: no reply.
            MyLLMError: the client was closed.
        """
        if self._client.is_closed:
            raise MyLLMError("This client is closed.", hint="Make a new one, or close it later.")
        deadline = deadline_of(action.timeout)
        request = _build(self._client, action)
        with _translated(action, deadline):
            response = self._client.send(request, stream=True)
        if action.stream and response.status_code < 300:
            return Reply(
                status=response.status_code,
                headers=response.headers,
                stream=OpenBody(response, action, deadline),
            )
        with OpenBody(response, action, deadline) as body:
            content = b"".join(body)
        return Reply(status=response.status_code, headers=response.headers, body=content)

    def close(self) -> None:
        """Close the connections; nothing can be sent afterwards."""
        self._client.close()


class OpenBody:
    """A reply's body on its way: an iterator of byte strings, closed with the context."""

    def __init__(self, response: httpx.Response, action: Send, deadline: float | None) -> None:
        self._response = response
        self._action = action
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        with _translated(self._action, self._deadline):
            for data in self._response.iter_bytes():
                yield data
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise deadline_error(self._action)

    def __enter__(self) -> OpenBody:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection unless the body was read to its end; the server then aborts the request.

        Also from another thread than the one that reads: that one then sees the connection end.
        """
        _shut_down(self._response)
        self._response.close()

    def abandon(self) -> None:
        """Close from where nothing can be awaited."""
        self.close()


class AsyncHTTPTransport:
    """Sends for the async driver; each event loop has connections of its own."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        options: HTTPOptions,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._arguments = (
            options.client_arguments(endpoints) if transport is None else {"transport": transport}
        )
        # Connections belong to the loop they were made in; using them in another one fails or hangs.
        self._clients: dict[asyncio.AbstractEventLoop, httpx.AsyncClient] = {}

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            # A client holds its loop, so a weak table would keep both for ever: one `asyncio.run` after the
            # other must not add up. What a closed loop had open is closed when it is collected.
            for dead in [known for known in list(self._clients) if known.is_closed()]:
                self._clients.pop(dead, None)
            client = self._clients[loop] = httpx.AsyncClient(**self._arguments)
        return client

    async def send(self, action: Send) -> Reply:
        """See `HTTPTransport.send`."""
        client = self._client()
        deadline = deadline_of(action.timeout)
        request = _build(client, action)
        async with _async_translated(action, deadline):
            response = await client.send(request, stream=True)
        body = AsyncOpenBody(response, action, deadline)
        if action.stream and response.status_code < 300:
            return Reply(status=response.status_code, headers=response.headers, stream=body)
        async with body:
            content = b"".join([data async for data in body])
        return Reply(status=response.status_code, headers=response.headers, body=content)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


_closing: set[asyncio.Task[None]] = set()
"""Bodies being closed in the background: a loop itself holds its tasks weakly only."""


class AsyncOpenBody:
    """`OpenBody` for the async driver."""

    def __init__(self, response: httpx.Response, action: Send, deadline: float | None) -> None:
        self._response = response
        self._action = action
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._response.aiter_bytes().__aiter__()
        while True:
            async with _async_translated(self._action, self._deadline):
                try:
                    data = await anext(chunks)
                except StopAsyncIteration:
                    return
            yield data

    async def __aenter__(self) -> AsyncOpenBody:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `OpenBody.close`; also from another task."""
        _shut_down(self._response)
        await self._response.aclose()

    def abandon(self) -> None:
        """Close from where nothing can be awaited, in any thread."""
        _shut_down(self._response)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_in_background)

    def _close_in_background(self) -> None:
        task = self._loop.create_task(self._response.aclose())
        _closing.add(task)
        task.add_done_callback(_closing.discard)


def _build(client: httpx.Client | httpx.AsyncClient, action: Send) -> httpx.Request:
    timeout = action.timeout
    content = None
    headers: Mapping[str, str] = action.headers
    if action.request.json is not None:
        content = _encoded(action.request.json)
        headers = {**headers, "Content-Type": "application/json"}
    return client.build_request(
        action.request.method,
        action.endpoint.url + action.request.path,
        content=content,
        headers=headers,
        timeout=httpx.Timeout(
            connect=least(timeout.connect, timeout.total),
            read=least(timeout.read, timeout.total),
            write=least(timeout.read, timeout.total),
            pool=timeout.total,
        ),
    )


def _encoded(body: object) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError) as exc:  # a lone surrogate is a ValueError too
        raise InvalidParameterError(f"The request cannot be written as JSON: {exc}.") from exc


def _shut_down(response: httpx.Response) -> None:
    """End the connection under a body that is not read to its end; closing alone wakes no blocked reader."""
    if response.is_closed:
        return
    stream = response.extensions.get("network_stream")
    connection = None if stream is None else stream.get_extra_info("socket")
    if connection is not None:
        # Through a descriptor of our own, for uvloop guards its sockets. An OSError: it is down already.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)


@contextmanager
def _translated(action: Send, deadline: float | None) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        if isinstance(exc, httpx.TimeoutException) and deadline is not None and time.monotonic() >= deadline:
            raise deadline_error(action) from exc
        error = error_from_httpx(exc, action)
        # A refused connection has a hundred lines of causes that tell no more than its message does.
        raise error from (None if isinstance(error, ConnectError) and not error.connected else exc)


@asynccontextmanager
async def _async_translated(action: Send, deadline: float | None) -> AsyncIterator[None]:
    remaining = None if deadline is None else deadline - time.monotonic()
    try:
        with _translated(action, deadline):
            async with asyncio.timeout(remaining):
                yield
    except TimeoutError as exc:
        if isinstance(exc, MyLLMError):
            raise
        raise deadline_error(action) from exc
