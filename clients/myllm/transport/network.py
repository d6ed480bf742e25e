"""Sockets that keep to a call's limits: httpcore network backends of our own, sync and asyncio.

httpcore gives every read the same limit. A call has three (first byte, silence, deadline), and a server that
trickles must not outlast them, so each connection's stream asks a `Waits` for how long it may wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore

from ..wire import Timeout

_Never = float("inf")


class Waits:
    """How long the exchange that a connection is busy with may wait; armed anew for each exchange."""

    __slots__ = ("_connect", "_deadline", "_first_byte", "_idle", "began", "received")

    def __init__(self) -> None:
        self._connect = self._first_byte = self._idle = self._deadline = _Never
        self.began = self.received = False

    def arm(self, timeout: Timeout, deadline: float | None) -> None:
        """Start the clock: the exchange begins now and must end at `deadline` (monotonic)."""
        now = time.monotonic()
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

    @property
    def past_deadline(self) -> bool:
        """Whether the whole call's time is up (within the clock's grain)."""
        return time.monotonic() >= self._deadline - 0.001


def _seconds(limit: float, expired: type[Exception]) -> float | None:
    if limit == _Never:
        return None
    if limit <= 0:
        raise expired
    return limit


class Wire(httpcore.NetworkBackend):
    """Makes the socket of one connection and keeps it at hand, to shut it down from elsewhere."""

    def __init__(self) -> None:
        self.waits = Waits()
        self.stream: TimedStream | None = None

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first of the host's addresses that accepts, within the call's limit for them all."""
        with _os_errors():
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        failure: Exception | None = None
        for *_, address in found:
            try:
                inner = httpcore.SyncBackend().connect_tcp(
                    str(address[0]), port, self.waits.to_connect(), local_address, socket_options or ()
                )
            except httpcore.ConnectError as exc:
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
        connection = None if self.stream is None else self.stream.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # it is down already
                connection.shutdown(socket.SHUT_RDWR)


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
        data = self._inner.read(max_bytes, self._waits.to_read())
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

    def __init__(self) -> None:
        self.waits = Waits()
        self.stream: AsyncTimedStream | None = None

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
                # uvloop tries a host's addresses one after the other, and knows no such argument.
                standard = isinstance(asyncio.get_running_loop(), asyncio.BaseEventLoop)
                side_by_side = {"happy_eyeballs_delay": 0.25} if standard else {}
                async with asyncio.timeout(self.waits.to_connect()):
                    reader, writer = await asyncio.open_connection(host, port, limit=2**20, **side_by_side)
            except TimeoutError as exc:
                raise httpcore.ConnectTimeout(str(exc)) from exc
        connection = writer.get_extra_info("socket")
        if connection is not None:
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
        connection = None if self.stream is None else self.stream.get_extra_info("socket")
        if connection is not None and connection.fileno() >= 0:
            # Through a descriptor of our own, for event loops guard their sockets.
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as twin:
                twin.shutdown(socket.SHUT_RDWR)


class AsyncTimedStream(httpcore.AsyncNetworkStream):
    """An asyncio stream that keeps to the call's limits; see `TimedStream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waits: Waits) -> None:
        self._reader = reader
        self._writer = writer
        self._waits = waits
        self._unsent = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Send what is to be sent, and read what is there, or wait for it."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            with contextlib.suppress(httpcore.WriteError):
                await self._send(unsent)
        limit = self._waits.to_read()
        try:
            if limit is None:
                data = await self._reader.read(max_bytes)
            else:
                async with asyncio.timeout(limit):
                    data = await self._reader.read(max_bytes)
        except TimeoutError as exc:
            raise httpcore.ReadTimeout(str(exc)) from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc
        if data:
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
        """Return what the socket knows; "is_readable" of an idle connection: the server has closed it."""
        if info == "is_readable":
            return self._reader.at_eof() or self._writer.transport.is_closing()
        return self._writer.get_extra_info(info)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Turn the operating system's errors into httpcore's."""
    try:
        yield
    except OSError as exc:
        raise httpcore.ConnectError(str(exc)) from exc
