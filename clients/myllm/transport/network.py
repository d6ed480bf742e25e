"""Sockets that keep to a call's limits: httpcore network backends of our own, sync and asyncio.

httpcore gives every read the same limit. A call has three (first byte, silence, deadline), and a server that
trickles must not outlast them, so each connection's stream asks a `Waits` for how long it may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import httpcore

from ..wire import Timeout

_Never = float("inf")
Dial = Callable[[], socket.socket]
"""Returns a connected socket, for servers that are reached in another way than by TCP."""


class Waits:
    """How long the exchange that a connection is busy with may wait; armed anew for each exchange."""

    __slots__ = ("_connect", "_deadline", "_first_byte", "_idle", "armed", "began", "received")

    def __init__(self) -> None:
        self._connect = self._first_byte = self._idle = self._deadline = _Never
        self.armed = 0.0
        self.began = self.received = False

    def arm(self, timeout: Timeout, deadline: float | None) -> None:
        """Start the clock: the exchange begins now and must end at `deadline` (monotonic)."""
        now = self.armed = time.monotonic()
        self._connect = _Never if timeout.connect is None else now + timeout.connect
        self._first_byte = _Never if timeout.first_byte is None else now + timeout.first_byte
        self._idle = _Never if timeout.idle is None else timeout.idle
        self._deadline = _Never if deadline is None else deadline
        self.began = self.received = False

    def cut(self, seconds: float) -> None:
        """Let what is left of the exchange take so long at most."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def to_connect(self) -> float | None:
        """Return the seconds left for a connection."""
        return _seconds(min(self._connect, self._deadline) - time.monotonic(), httpcore.ConnectTimeout)

    def to_read(self) -> float | None:
        """Return the seconds that the next piece may take."""
        now = time.monotonic()
        limit = self._idle if self.began else self._first_byte - now
        return _seconds(min(limit, self._deadline - now), httpcore.ReadTimeout)

    def to_write(self) -> float | None:
        """Return the seconds that sending may take: the server's silence by another name."""
        now = time.monotonic()
        return _seconds(min(self._first_byte, self._deadline) - now, httpcore.WriteTimeout)


def _seconds(limit: float, expired: type[Exception]) -> float | None:
    if limit == _Never:
        return None
    if limit <= 0:
        raise expired
    return limit


class Wire(httpcore.NetworkBackend):
    """Makes the socket of one connection and keeps it at hand, to shut it down from elsewhere."""

    def __init__(self, dial: Dial | None = None) -> None:
        self.waits = Waits()
        self.stream: TimedStream | None = None
        self._dial = dial
        self.aborted = False

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the host's addresses that accepts, within the call's limit for them all."""
        if self._dial is not None:
            with _os_errors():
                self.stream = TimedStream(SocketStream(self._dial()), self)
            return self.stream
        addresses = _addresses(host, port, self.waits.to_connect())
        failure: Exception | None = None
        for position, address in enumerate(addresses):
            limit = self.waits.to_connect()
            if limit is not None:  # an address that is a black hole leaves the others their share
                limit /= len(addresses) - position
            try:
                inner = httpcore.SyncBackend().connect_tcp(
                    address, port, limit, local_address, socket_options or ()
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as exc:
                failure = exc
                continue
            self.stream = TimedStream(inner, self)
            return self.stream
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def close(self) -> None:
        """Close the socket."""
        if self.stream is not None:
            self.stream.close()

    def shut_down(self) -> None:
        """End the connection at once, whatever thread reads from it: that one sees its end."""
        self.aborted = True
        connection = None if self.stream is None else self.stream.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # it is down already
                connection.shutdown(socket.SHUT_RDWR)


def _addresses(host: str, port: int, limit: float | None) -> list[str]:
    """Look a host up, in a thread where there is a limit: the resolver knows none."""

    def look_up() -> list[str]:
        with _os_errors():
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    if limit is None or host == "localhost" or ":" in host or host.replace(".", "").isdigit():
        return look_up()
    answer: Future[list[str]] = Future()

    def work() -> None:
        try:
            answer.set_result(look_up())
        except Exception as exc:  # noqa: BLE001 - told to the thread that waits
            answer.set_exception(exc)

    threading.Thread(target=work, name="myllm-resolver", daemon=True).start()
    try:
        return answer.result(limit)
    except TimeoutError:
        raise httpcore.ConnectTimeout(f"{host} could not be looked up in time") from None


class SocketStream(httpcore.NetworkStream):
    """A connected socket as httpcore's backends, which only connect, do not hand one out."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what is there, or wait for it."""
        try:
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send everything, within the limit altogether."""
        try:
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)
        except TimeoutError as exc:
            raise httpcore.WriteTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Return the "socket", and whether it "is_readable": an idle connection is so when it has ended."""
        if info == "is_readable":
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        return self._socket if info == "socket" else None


class TimedStream(httpcore.NetworkStream):
    """A stream whose waits the call decides; httpcore's own `timeout` arguments are not used.

    A request's headers and body come as two writes; sent as one they are one packet, and cost half.
    """

    def __init__(self, inner: httpcore.NetworkStream, wire: Wire) -> None:
        self._inner = inner
        self._wire = wire
        self._waits = wire.waits
        self._unsent = b""

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what is to be sent, and read what is there, or wait for it."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            # A server may answer before it has read everything (413): its answer tells more.
            with contextlib.suppress(httpcore.WriteError):
                self._inner.write(unsent, self._waits.to_write())
        limit, since = self._waits.to_read(), time.monotonic()
        try:
            data = self._inner.read(max_bytes, limit)
        except httpcore.ReadTimeout as exc:
            raise _timeout(exc, limit, since) from exc
        if data:
            self._waits.received = True
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Take what the next `read` will send."""
        self._unsent = self._unsent + buffer if self._unsent else buffer

    def close(self) -> None:
        """Close the socket."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Return the stream inside TLS."""
        inner = self._inner.start_tls(ssl_context, server_hostname, self._waits.to_connect())
        self._wire.stream = TimedStream(inner, self._wire)
        return self._wire.stream

    def get_extra_info(self, info: str) -> Any:
        """Return what the socket knows: "socket", "is_readable", …."""
        return self._inner.get_extra_info(info)


class AsyncWire(httpcore.AsyncNetworkBackend):
    """`Wire` for asyncio. httpcore's own backend goes through anyio, which costs twice as much a call."""

    def __init__(self, dial: Dial | None = None) -> None:
        self.waits = Waits()
        self.stream: AsyncTimedStream | None = None
        self._dial = dial
        self.aborted = False

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the host; its addresses are tried side by side (RFC 8305)."""
        with _os_errors():
            try:
                async with asyncio.timeout(self.waits.to_connect()):
                    reader, writer = await _open_connection(host, port, self._dial)
            except TimeoutError as exc:
                raise httpcore.ConnectTimeout(str(exc)) from exc
        connection = writer.get_extra_info("socket")
        if connection is not None and self._dial is None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = AsyncTimedStream(reader, writer, self.waits)
        return self.stream

    def close(self) -> None:
        """Close the socket.

        Where its loop has ended it can only be shut down, and is closed when collected.
        """
        if self.stream is not None:
            try:
                self.stream.close()
            except RuntimeError:
                self.shut_down()

    def shut_down(self) -> None:
        """End the connection at once, from any thread: a reader sees its end."""
        self.aborted = True
        connection = None if self.stream is None else self.stream.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            # Through a descriptor of our own, for event loops guard their sockets.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)


class _CountingReader(asyncio.StreamReader):
    """Knows whether it holds bytes that nobody has read yet."""

    fed = 0

    def feed_data(self, data: Any) -> None:
        self.fed += len(data)
        super().feed_data(data)


async def _open_connection(
    host: str, port: int, dial: Dial | None
) -> tuple[_CountingReader, asyncio.StreamWriter]:
    """Do as `asyncio.open_connection` does, with a reader of ours."""
    loop = asyncio.get_running_loop()
    reader = _CountingReader(limit=2**20, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport: asyncio.Transport
    if dial is not None:
        transport, _ = await loop.create_unix_connection(lambda: protocol, sock=dial())
    else:
        # uvloop tries a host's addresses one after the other, and knows no such argument.
        standard = isinstance(loop, asyncio.BaseEventLoop)
        options: dict[str, Any] = {"happy_eyeballs_delay": 0.25} if standard else {}
        transport, _ = await loop.create_connection(lambda: protocol, host, port, **options)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class AsyncTimedStream(httpcore.AsyncNetworkStream):
    """An asyncio stream that keeps to the call's limits; see `TimedStream`."""

    def __init__(self, reader: _CountingReader, writer: asyncio.StreamWriter, waits: Waits) -> None:
        self._reader = reader
        self._writer = writer
        self._waits = waits
        self._unsent = b""
        self._taken = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what is to be sent, and read what is there, or wait for it."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            with contextlib.suppress(httpcore.WriteError):
                await self._send(unsent)
        limit, since = self._waits.to_read(), time.monotonic()
        try:
            if limit is None:
                data = await self._reader.read(max_bytes)
            else:
                async with asyncio.timeout(limit):
                    data = await self._reader.read(max_bytes)
        except TimeoutError as exc:
            raise _timeout(exc, limit, since) from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc
        if data:
            self._taken += len(data)
            self._waits.received = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Take what the next `read` will send."""
        self._unsent = self._unsent + buffer if self._unsent else buffer

    async def _send(self, buffer: bytes) -> None:
        """Send everything; waits only while the socket takes no more."""
        try:
            self._writer.write(buffer)
            if self._writer.transport.get_write_buffer_size():
                async with asyncio.timeout(self._waits.to_write()):
                    await self._writer.drain()
        except TimeoutError as exc:
            raise httpcore.WriteTimeout(str(exc)) from exc
        except (OSError, RuntimeError) as exc:  # RuntimeError: the transport is closing
            raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        """Close the socket without waiting for the other side."""
        self._writer.close()

    async def aclose(self) -> None:
        """See `close`."""
        self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Continue inside TLS."""
        with _os_errors():
            try:
                async with asyncio.timeout(self._waits.to_connect()):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
            except TimeoutError as exc:
                raise httpcore.ConnectTimeout(str(exc)) from exc
        return self

    def get_extra_info(self, info: str) -> Any:
        """Return what the socket knows; "is_readable" of an idle connection: it is closed, or out of step."""
        if info == "is_readable":
            unread = self._reader.fed > self._taken
            return unread or self._reader.at_eof() or self._writer.transport.is_closing()
        return self._writer.get_extra_info(info)


def _timeout(exc: Exception, limit: float | None, since: float) -> Exception:
    """Return what a read that timed out met: our limit, or a route that vanished (the system's ETIMEDOUT)."""
    if limit is not None and time.monotonic() - since >= limit - 0.01:
        return httpcore.ReadTimeout(str(exc))
    return httpcore.ReadError(str(exc) or "the connection timed out")


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turn the operating system's errors into httpcore's."""
    try:
        yield
    except OSError as exc:
        raise httpcore.ConnectError(str(exc)) from exc
