"""Connection pools, sync and asyncio: httpcore's connections under an O(1) pool of our own.

httpcore speaks HTTP/1.1; its pool, which looks through all connections and all waiting requests at each step,
is what makes httpx slow with many requests in flight (at 64: 650 calls a second; these: ten times that).
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

import httpcore

from ..endpoints import Endpoint
from ..wire import Timeout
from .lines import GONE, KEEP_ALIVE, Line, Pool, Site, close_all, decoder_for, headers_of, until
from .network import AsyncWire, Waits, Wire
from .options import HTTPOptions


class Exchange:
    """A reply whose body is still to be read: an iterator of byte strings, closed with the context."""

    def __init__(self, response: httpcore.Response, line: Line[Wire], done: Callable[[], None]) -> None:
        self.status = response.status
        self.headers = headers_of(response)
        self._decoded = decoder_for(self.headers)
        self._response = response
        self._pieces = response.iter_stream()  # one iterator: `finish` goes on where a reader stopped
        self._line = line
        self._done = done
        self._over = False

    def __iter__(self) -> Iterator[bytes]:
        waits = self._line.waits
        for data in self._pieces:
            waits.began = True
            yield data if self._decoded is None else self._decoded(data)

    def read(self) -> bytes:
        """Return the rest of the body."""
        with self:
            return b"".join(self)

    def finish(self, seconds: float) -> None:
        """Read the end of a body that has told everything, so that its connection can be used again."""
        self._line.waits.cut(seconds)
        try:
            for _ in self:
                pass
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
            pass  # the connection is closed then, which is all there is to do
        finally:
            self.close()

    @property
    def waits(self) -> Waits:
        """The limits that this exchange keeps to."""
        return self._line.waits

    def abort(self) -> None:
        """End the connection at once, from any thread; one that reads from it sees its end, and closes it."""
        if not self._over:
            self._line.wire.shut_down()

    def abandon(self) -> None:
        """End and close what nobody reads any more."""
        self.abort()
        self.close()

    def close(self) -> None:
        """Give the connection back, or close it when the body was not read to its end."""
        if self._over:
            return
        self._over = True
        try:
            self._response.close()
        finally:
            self._done()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Connections:
    """Connections to servers for synchronous callers. Thread-safe."""

    def __init__(self, options: HTTPOptions, max_concurrency: int | None = None) -> None:
        self._pool: Pool[Wire] = Pool(options, _sync_connection)
        self._max_concurrency = max_concurrency
        self._places_of: tuple[int, threading.BoundedSemaphore | None] = (-1, None)
        weakref.finalize(self, close_all, self._pool)  # a client that is dropped leaves no socket open

    def open(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        timeout: Timeout,
        deadline: float | None,
        watch: Callable[[Wire], object] | None = None,
        at_once: bool = False,
    ) -> Exchange:
        """Send a request and return once the reply's headers are there.

        `watch` is called with what can shut the connection down from another thread.

        Raises:
            httpcore's exceptions: no connection, or it broke, or a limit ran out (`PoolTimeout`: for a place
                among `max_concurrency`).
        """
        site, idle = self._pool.site(endpoint)
        request = site.request(method, path, headers, content)
        places = self._places()
        if places is not None and not places.acquire(timeout=0.0 if at_once else until(deadline)):
            raise httpcore.PoolTimeout
        release = None if places is None else places.release
        fresh = False
        try:
            while True:
                line = self._pool.take(site, idle, fresh=fresh)
                line.waits.arm(timeout, deadline)
                try:
                    if watch is not None:
                        watch(line.wire)
                    response = line.http.handle_request(request)
                    break
                except GONE:
                    if not line.was_gone():
                        raise
                    fresh = True  # the server had closed it; the others are likely no better
        except BaseException:
            if release is not None:
                release()
            raise

        def done() -> None:
            self._pool.give_back(line, idle)
            if release is not None:
                release()

        return Exchange(response, line, done)

    def _places(self) -> threading.BoundedSemaphore | None:
        """Return what limits the requests in flight; a fork's parent gives no place back to its child."""
        if self._places_of[0] != os.getpid():
            limit = self._max_concurrency
            self._places_of = os.getpid(), None if limit is None else threading.BoundedSemaphore(limit)
        return self._places_of[1]

    def close(self) -> None:
        """Close the idle connections; nothing can be sent afterwards."""
        close_all(self._pool)


_closing: set[asyncio.Task[None]] = set()
"""Exchanges being closed in the background: a loop itself holds its tasks weakly only."""


class AsyncExchange:
    """`Exchange` for asyncio."""

    def __init__(self, response: httpcore.Response, line: Line[AsyncWire], done: Callable[[], None]) -> None:
        self.status = response.status
        self.headers = headers_of(response)
        self._decoded = decoder_for(self.headers)
        self._response = response
        self._pieces = response.aiter_stream()
        self._line = line
        self._done = done
        self._over = False
        self._loop = asyncio.get_running_loop()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        waits = self._line.waits
        async for data in self._pieces:
            waits.began = True
            yield data if self._decoded is None else self._decoded(data)

    async def read(self) -> bytes:
        """See `Exchange.read`."""
        async with self:
            return b"".join([data async for data in self])

    async def finish(self, seconds: float) -> None:
        """See `Exchange.finish`."""
        self._line.waits.cut(seconds)
        try:
            async for _ in self:
                pass
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
            pass
        finally:
            await self.close()

    @property
    def waits(self) -> Waits:
        """See `Exchange.waits`."""
        return self._line.waits

    def abort(self) -> None:
        """See `Exchange.abort`; from any thread."""
        if not self._over:
            self._line.wire.shut_down()

    def abandon(self) -> None:
        """See `Exchange.abandon`; from any thread, where nothing can be awaited."""
        self.abort()
        if not self._over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_in_background)

    def _close_in_background(self) -> None:
        task = self._loop.create_task(self.close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)

    async def close(self) -> None:
        """See `Exchange.close`."""
        if self._over:
            return
        self._over = True
        try:
            await self._response.aclose()
        finally:
            self._done()

    async def __aenter__(self) -> AsyncExchange:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class AsyncConnections:
    """`Connections` for asyncio; each event loop has its own, and its own `max_concurrency` places."""

    def __init__(self, options: HTTPOptions, max_concurrency: int | None = None) -> None:
        self._options = options
        self._max_concurrency = max_concurrency
        # Connections belong to the loop they were made in; using them in another one fails or hangs.
        self._loops: dict[asyncio.AbstractEventLoop, tuple[Pool[AsyncWire], asyncio.Semaphore | None]] = {}
        weakref.finalize(self, _close_loops, self._loops)

    def _here(self) -> tuple[Pool[AsyncWire], asyncio.Semaphore | None]:
        loop = asyncio.get_running_loop()
        found = self._loops.get(loop)
        if found is None:
            # A pool holds its loop, so a weak table would keep both for ever: one `asyncio.run` after the
            # other must not add up.
            for dead in [known for known in list(self._loops) if known.is_closed()]:
                if (gone := self._loops.pop(dead, None)) is not None:
                    close_all(gone[0])
            limit = self._max_concurrency
            found = (
                Pool(self._options, _async_connection),
                None if limit is None else asyncio.Semaphore(limit),
            )
            self._loops[loop] = found
        return found

    async def open(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        headers: Mapping[str, str],
        content: bytes | None,
        timeout: Timeout,
        deadline: float | None,
        at_once: bool = False,
    ) -> AsyncExchange:
        """See `Connections.open`."""
        pool, places = self._here()
        site, idle = pool.site(endpoint)
        request = site.request(method, path, headers, content)
        if places is not None:
            if at_once and places.locked():
                raise httpcore.PoolTimeout
            await _acquire(places.acquire, deadline)
        release = None if places is None else places.release
        fresh = False
        try:
            while True:
                line = pool.take(site, idle, fresh=fresh)
                line.waits.arm(timeout, deadline)
                try:
                    response = await line.http.handle_async_request(request)
                    break
                except GONE:
                    if not line.was_gone():
                        raise
                    fresh = True
        except BaseException:
            if release is not None:
                release()
            raise

        def done() -> None:
            pool.give_back(line, idle)
            if release is not None:
                release()

        return AsyncExchange(response, line, done)

    async def close(self) -> None:
        """Close the running loop's idle connections."""
        found = self._loops.pop(asyncio.get_running_loop(), None)
        if found is not None:
            close_all(found[0])


def _sync_connection(site: Site, ssl_context: Any, proxy: httpcore.Proxy | None) -> tuple[Any, Wire]:
    wire = Wire(site.dial)
    factory = httpcore.ConnectionPool(
        ssl_context=ssl_context, proxy=proxy, keepalive_expiry=KEEP_ALIVE, network_backend=wire
    )
    return factory.create_connection(site.origin), wire


def _async_connection(site: Site, ssl_context: Any, proxy: httpcore.Proxy | None) -> tuple[Any, AsyncWire]:
    wire = AsyncWire(site.dial)
    factory = httpcore.AsyncConnectionPool(
        ssl_context=ssl_context, proxy=proxy, keepalive_expiry=KEEP_ALIVE, network_backend=wire
    )
    return factory.create_connection(site.origin), wire


def _close_loops(loops: dict[Any, tuple[Pool[AsyncWire], Any]]) -> None:
    for pool, _ in loops.values():
        close_all(pool)


async def _acquire(acquire: Callable[[], Awaitable[Any]], deadline: float | None) -> None:
    try:
        async with asyncio.timeout(until(deadline)):
            await acquire()
    except TimeoutError as exc:
        raise httpcore.PoolTimeout from exc
