"""What sync and async connection pools share: connections at rest, and requests as httpcore wants them."""

from __future__ import annotations

import base64
import contextlib
import os
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import httpcore

from ..endpoints import Endpoint
from ..errors import MyLLMError
from .network import AsyncWire, Waits, Wire
from .options import HTTPOptions

KEEP_ALIVE = 30.0
"""Seconds that an unused connection is kept."""
MAX_IDLE = 512
"""Unused connections that are kept for each server; there is no limit on busy ones but `max_concurrency`."""

RACE = 0.5
"""Seconds within which a connection that was used before may break under a new request and be taken for one
that the server had just closed: the request then goes out once more, on a new connection."""

# What a connection that the server closed while it lay idle looks like when it is used again.
GONE = (httpcore.RemoteProtocolError, httpcore.ReadError, httpcore.WriteError)
WireT = TypeVar("WireT", Wire, AsyncWire)


@dataclass(slots=True, eq=False)
class Line(Generic[WireT]):
    """One connection: httpcore's, and what makes and times its socket."""

    http: Any
    wire: WireT
    used: bool = False

    @property
    def waits(self) -> Waits:
        return self.wire.waits

    def was_gone(self) -> bool:
        """Whether the connection was closed as it lay idle, and not by what was sent on it."""
        waits = self.wire.waits
        quick = time.monotonic() - waits.armed < RACE
        return self.used and quick and not waits.received and not self.wire.aborted


class Site:
    """What is the same for all requests to one server."""

    def __init__(self, endpoint: Endpoint, options: HTTPOptions) -> None:
        parts = urlsplit(endpoint.url)
        self.scheme = parts.scheme.encode()
        self.host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii")
        self.port = parts.port
        self.path = parts.path.rstrip("/").encode()
        self.origin = httpcore.Origin(
            self.scheme, self.host, self.port or (443 if parts.scheme == "https" else 80)
        )
        bare = b"[%s]" % self.host if b":" in self.host else self.host
        self.headers: list[tuple[bytes, bytes]] = [
            (b"Host", bare if self.port is None else b"%s:%d" % (bare, self.port))
        ]
        self.authorized = options.auth is not None
        if options.auth is not None:
            credentials = base64.b64encode(":".join(options.auth).encode())
            self.headers.append((b"Authorization", b"Basic " + credentials))
        self.proxy = options.proxy_for(endpoint)
        self.dial = endpoint.dial

    def request(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None
    ) -> httpcore.Request:
        """Return httpcore's request, which may be sent more than once."""
        fields = [*self.headers]
        if any(name.lower() == "host" for name in headers):
            del fields[0]  # the caller's own, for a server behind a gateway that goes by names
        for name, value in headers.items():
            if not (self.authorized and name.lower() == "authorization"):
                fields.append((name.encode(), value.encode()))
        if content is not None:
            fields.append((b"Content-Length", b"%d" % len(content)))
        target = self.path + path.encode()
        url = httpcore.URL(scheme=self.scheme, host=self.host, port=self.port, target=target)
        return httpcore.Request(method, url, headers=fields, content=content)


class Pool(Generic[WireT]):
    """The idle connections of each server, newest first. Thread-safe: deques are."""

    def __init__(self, options: HTTPOptions, make: Callable[[Site, Any, Any], tuple[Any, WireT]]) -> None:
        self._options = options
        self._make: Callable[[Site, Any, Any], tuple[Any, WireT]] = make
        self._sites: dict[Endpoint, tuple[Site, deque[Line[WireT]]]] = {}
        self._ssl: Any = None
        self._pid = os.getpid()
        self.closed = False

    def site(self, endpoint: Endpoint) -> tuple[Site, deque[Line[WireT]]]:
        if self._pid != os.getpid():
            # After a fork both processes would talk over one socket: the child forgets what it inherited.
            self._sites, self._pid = {}, os.getpid()
        found = self._sites.get(endpoint)
        if found is None:
            if endpoint.url.startswith("https:") and self._ssl is None:
                self._ssl = self._options.ssl_context()
            found = self._sites.setdefault(endpoint, (Site(endpoint, self._options), deque()))
        return found

    def take(self, site: Site, idle: deque[Line[WireT]], *, fresh: bool) -> Line[WireT]:
        """Return an idle connection that still stands, or a new one."""
        if self.closed:
            raise MyLLMError("This client is closed.", hint="Make a new one, or close it later.")
        while not fresh:
            try:
                line = idle.pop()
            except IndexError:
                break
            if not line.http.has_expired():
                return line
            self.drop(line)
        return Line(*self._make(site, self._ssl, site.proxy))

    def give_back(self, line: Line[WireT], idle: deque[Line[WireT]]) -> None:
        """Keep a connection for the next request, if it can have one."""
        if line.http.is_idle() and not self.closed and len(idle) < MAX_IDLE:
            line.used = True
            idle.append(line)
            # The newest are used first; what the server has closed meanwhile lies at the other end.
            if len(idle) > 1 and idle[0].http.has_expired():
                with contextlib.suppress(IndexError):  # another thread may have taken them
                    self.drop(idle.popleft())
        else:
            self.drop(line)

    @staticmethod
    def drop(line: Line[WireT]) -> None:
        """Close a connection."""
        line.wire.close()

    def lines(self) -> Iterator[Line[WireT]]:
        """Take out all idle connections."""
        for _, idle in list(self._sites.values()):
            while idle:
                yield idle.pop()


def headers_of(response: httpcore.Response) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw, value in response.headers:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        # Cookies hold commas (RFC 6265, section 3): they are kept line by line.
        between = "\n" if name == "set-cookie" else ", "
        headers[name] = f"{headers[name]}{between}{text}" if name in headers else text
    return headers


def decoder_for(headers: dict[str, str]) -> Callable[[bytes], bytes] | None:
    """Return what undoes a body's compression, and forget that there was any.

    None was asked for (`Accept-Encoding: identity`), but some proxies compress all the same.
    """
    if headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
        return None
    del headers["content-encoding"]
    headers.pop("content-length", None)
    unzip = zlib.decompressobj(47)  # 32 + 15: either format

    def decoded(data: bytes) -> bytes:
        try:
            return unzip.decompress(data)
        except zlib.error as exc:
            raise httpcore.RemoteProtocolError(f"the compressed answer is damaged: {exc}") from exc

    return decoded


def close_all(pool: Pool[Any]) -> None:
    pool.closed = True
    for line in pool.lines():
        pool.drop(line)


def until(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
