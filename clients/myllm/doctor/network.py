"""From a host's name to a connection that can be spoken over, one step at a time."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore

from ..endpoints import Endpoint
from ..transport.options import HTTPOptions
from .report import Finding

_DAY = 86_400
_SOON: Final = 14  # days that a certificate should at least be good for
_CERTIFICATE_ADVICE = {
    "self-signed": "Trust it by name: `SSL_CERT_FILE=server.pem`, or `HTTPOptions(verify=…)` in a program.",
    "unable to get local issuer": "Its authority is not known here: name it, `SSL_CERT_FILE=ca.pem`.",
    "expired": "Renew the server's certificate (or set this machine's clock right).",
    "not yet valid": "Is this machine's clock right?",
    "mismatch": "The certificate is for another host name: use that one in the URL.",
    "WRONG_VERSION_NUMBER": "The server speaks no TLS there: write the URL with `http://`.",
    "UNEXPECTED_EOF": "The server speaks no TLS there, perhaps: try the URL with `http://`.",
}


def look_at_network(endpoint: Endpoint, http: HTTPOptions, timeout: float | None) -> Iterator[Finding]:
    """Yield what each step of connecting found; a problem is the last one.

    Through a proxy only the way to the proxy can be seen; it looks up the host and connects to it.
    """
    parts = urlsplit(endpoint.url)
    proxy = http.proxy_for(endpoint)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if proxy is not None:
        host, port = proxy.url.host.decode(), proxy.url.port or 80
    who = "the proxy's " if proxy is not None else ""
    start = time.monotonic()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        yield Finding(
            check="dns",
            section="Connection",
            status="problem",
            summary=f"{who}host {host!r} is not known: {getattr(exc, 'strerror', None) or exc}",
            advice="Is the host's name right, and does this machine see its network (VPN, DNS)?",
        )
        return
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    yield Finding(
        check="dns",
        section="Connection",
        status="ok",
        summary=f"{who}{host} is {', '.join(addresses)}"
        if [host] != addresses
        else f"{who}{host}, an address",
        seconds=time.monotonic() - start,
        data={"host": host, "addresses": addresses},
    )
    finding, connection = _connect(who, addresses, port, timeout)
    yield finding
    if connection is None:
        return
    with connection:
        if parts.scheme == "https" and proxy is None:
            yield _tls(connection, host, http)


def _connect(
    who: str, addresses: list[str], port: int, timeout: float | None
) -> tuple[Finding, socket.socket | None]:
    """Connect to the first address that accepts."""
    errors: list[OSError] = []
    for address in addresses:
        start = time.monotonic()
        try:
            connection = socket.create_connection((address, port), timeout)
        except OSError as exc:
            errors.append(exc)
            continue
        summary = f"{who}port {port} of {address} accepts connections"
        if errors:
            summary += f", after {', '.join(addresses[: len(errors)])} did not"
        seconds = time.monotonic() - start
        data: dict[str, Any] = {"address": address, "port": port}
        return Finding(
            check="tcp", section="Connection", status="ok", summary=summary, seconds=seconds, data=data
        ), connection
    error = errors[-1]
    if isinstance(error, ConnectionRefusedError):
        summary = f"{who}port {port} refuses connections: nothing listens there"
        advice = f"Start a server (`myllm serve --port {port}`), or correct the port."
        if who:
            advice = "Is the proxy running, and its variable right? `NO_PROXY` names hosts that need none."
    elif isinstance(error, TimeoutError):
        summary = f"{who}port {port} gave no answer within {timeout:g} s"
        advice = "A firewall, a wrong address, or a machine that is off: does `ping` reach it?"
    else:
        summary = f"{who}port {port} cannot be reached: {error.strerror or error}"
        advice = "Is this machine on the right network (VPN, container network)?"
    return Finding(check="tcp", section="Connection", status="problem", summary=summary, advice=advice), None


def _tls(connection: socket.socket, host: str, http: HTTPOptions) -> Finding:
    start = time.monotonic()
    try:
        with http.ssl_context().wrap_socket(connection, server_hostname=host) as secure:
            certificate: dict[str, Any] = dict(secure.getpeercert() or {})
            version = secure.version()
    except (OSError, httpcore.ConnectError) as exc:
        words = getattr(exc, "verify_message", "") or str(exc)
        advice = next((v for k, v in _CERTIFICATE_ADVICE.items() if k.lower() in words.lower()), None)
        return Finding(
            check="tls",
            section="Connection",
            status="problem",
            summary=f"no secure connection: {words}",
            advice=advice or "Does the server speak https on this port?",
        )
    seconds = time.monotonic() - start
    ends = certificate.get("notAfter")
    days = None if ends is None else int((ssl.cert_time_to_seconds(ends) - time.time()) // _DAY)
    expiring = days is not None and days < _SOON
    return Finding(
        check="tls",
        section="Connection",
        status="warning" if expiring else "ok",
        summary=f"{version}" + (f", certificate good for {days} days" if days is not None else ""),
        advice="Renew the server's certificate soon." if expiring else None,
        seconds=seconds,
        data={"version": version, "not_after": ends},
    )
