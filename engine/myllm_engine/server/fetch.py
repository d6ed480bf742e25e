"""Fetch what clients name by URL, and nothing that only this machine can reach.

A server that fetches for strangers can be told to ask its own network: the cloud's metadata address, a
database without a password. So names are resolved here, every address is checked, and the connection is made
to a checked address: a name that changes its address in between (DNS rebinding) gains nothing, and redirects
take the same way.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import httpcore
import httpx

_SECONDS = 10.0
_REDIRECTS = 3
_HEADERS = {"Accept": "image/*", "User-Agent": "myllm"}
_NAT64 = IPv6Network("64:ff9b::/96")  # carries an IPv4 address, private ones too

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class FetchError(Exception):
    """Something cannot be fetched, or may not; the message is meant for the client."""


def is_public(address: str) -> bool:
    """Tell whether an IP address belongs to a host on the internet: no private, loopback or such address."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in _NAT64:
            return False
    return ip.is_global and not ip.is_multicast


async def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host, as the system resolves it."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connect to addresses that are allowed, whatever the name was."""

    def __init__(self, allowed: Callable[[str], bool], resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:  # the second for what cannot be a name
            raise FetchError(f"the name {host!r} cannot be resolved") from error
        # One that is not allowed condemns the name: it was chosen by whoever wants to reach it.
        if not addresses or not all(map(self._allowed, addresses)):
            raise FetchError(f"{host!r} is not the name of a public host")
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                failure = error
        raise FetchError(f"{host!r} cannot be reached") from failure

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        raise FetchError("no socket of this machine is fetched from")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Fetcher:
    """Fetch from public hosts by HTTP.

    Args:
        domains: hosts that may be asked, with their subdomains; empty: all public ones.
        max_bytes: largest body.
        seconds: for all of it, redirects included.
        allowed: tells which IP addresses may be connected to.
        resolve: returns the IP addresses of a host.
    """

    def __init__(
        self,
        *,
        domains: Sequence[str] = (),
        max_bytes: int,
        seconds: float = _SECONDS,
        allowed: Callable[[str], bool] = is_public,
        resolve: Resolve = resolve,
    ) -> None:
        self._domains = tuple(domain.lower().strip(".") for domain in domains)
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._network = _CheckedNetwork(allowed, resolve)

    async def fetch(self, url: str) -> bytes:
        """Return the body behind a URL.

        Raises:
            FetchError: the URL, its host or the answer is not acceptable, or there is none in time.
        """
        try:
            async with (
                asyncio.timeout(self._seconds),
                httpcore.AsyncConnectionPool(network_backend=self._network) as pool,
            ):
                target = httpx.URL(url)
                for _ in range(_REDIRECTS + 1):
                    answer = await self._ask(pool, target)
                    if isinstance(answer, bytes):
                        return answer
                    target = target.join(answer)
                raise FetchError(f"there are more than {_REDIRECTS} redirects")
        except TimeoutError as error:
            raise FetchError(f"it took longer than {self._seconds:g} s") from error
        except httpx.InvalidURL as error:
            raise FetchError(f"the URL is not valid: {error}") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise FetchError(f"the connection failed ({type(error).__name__})") from error

    async def _ask(self, pool: httpcore.AsyncConnectionPool, url: httpx.URL) -> bytes | str:
        """Return the body, or where a redirect leads."""
        self._check(url)
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        async with pool.stream(
            "GET", target, headers={"Accept": "image/*", "User-Agent": "myllm"}
        ) as response:
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308) and b"location" in headers:
                return headers[b"location"]
            if response.status != 200:
                raise FetchError(f"{url.host} answers with the status {response.status}")
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) > self._max_bytes:
                    raise FetchError(f"it is larger than {self._max_bytes} bytes")
            return bytes(body)

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in ("http", "https") or not url.host:
            raise FetchError("only `http` and `https` URLs are fetched")
        if url.port is not None and not 0 < url.port < 65536:
            raise FetchError(f"the URL is not valid: there is no port {url.port}")
        if url.userinfo:
            raise FetchError("the URL holds a user name or password")
        host = url.host.lower().rstrip(".")
        if self._domains and not any(
            host == domain or host.endswith(f".{domain}") for domain in self._domains
        ):
            raise FetchError(f"the host {url.host!r} is not among those that this server fetches from")
