"""Take the socket that the server listens on.

Imports no HTTP library.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import stat
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path


class StartError(Exception):
    """The server cannot start, by a mistake that the user can mend; the message says how.

    Attributes:
        exit_code: 2 for wrong options, 1 for everything else.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Tls:
    """Name the files that make the server speak https, all in PEM.

    Attributes:
        keyfile: private key; None: it is in `certfile`.
        certfile: certificate and its chain.
        ca_certs: authorities whose client certificates are believed.
        cert_reqs: whether clients need a certificate, as `ssl.CERT_NONE`, `CERT_OPTIONAL` or `CERT_REQUIRED`.
    """

    keyfile: str | None
    certfile: str | None
    ca_certs: str | None = None
    cert_reqs: int = ssl.CERT_NONE

    def check(self) -> None:
        """Raise StartError for files that cannot be used."""
        if self.certfile is None:
            raise StartError("https needs a certificate: name its file with `--ssl-certfile`", exit_code=2)
        if self.cert_reqs != ssl.CERT_NONE and self.ca_certs is None:
            raise StartError(
                "`--ssl-cert-reqs` needs `--ssl-ca-certs`, the authorities to check certificates against",
                exit_code=2,
            )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = f"`--ssl-certfile` {self.certfile!r} and `--ssl-keyfile` {self.keyfile!r}"
        try:
            # An empty password: OpenSSL would ask the terminal for that of an encrypted key.
            context.load_cert_chain(self.certfile, self.keyfile, password="")
        except (OSError, ssl.SSLError) as error:
            raise StartError(f"{files} cannot be used: {error}", exit_code=2) from error
        if self.ca_certs is not None:
            try:
                context.load_verify_locations(self.ca_certs)
            except (OSError, ssl.SSLError) as error:
                raise StartError(
                    f"`--ssl-ca-certs` {self.ca_certs!r} cannot be used: {error}", exit_code=2
                ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Say where to listen.

    Attributes:
        host: address or name of an interface.
        port: 0 takes a free one.
        uds: path of a Unix domain socket that is used in place of host and port.
        fd: an inherited socket, bound and not yet listening, that is used in place of all of these.
        tls: how the server speaks https; None: it speaks http.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    uds: str | None = None
    fd: int | None = None
    tls: Tls | None = None


def bind(listen: Listen) -> socket.socket:
    """Return the bound socket.

    It does not listen yet: a client that comes before the model is loaded is refused at once and can try
    again, rather than wait in a queue that nobody serves.

    Raises:
        StartError: the port or path is taken, the address is not this machine's, or `fd` is no socket.
    """
    if listen.fd is not None:
        return _inherited(listen.fd)
    if listen.uds is not None:
        return _bind_path(listen.uds)
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise StartError(
            f"`--host` {listen.host!r} is not a name or address that can be resolved: {error.strerror}",
            exit_code=2,
        ) from error
    # Of a name with addresses of both kinds, such as localhost, IPv4's: clients that find nobody at the IPv6
    # one try the other, and those that were told 127.0.0.1 know no other.
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise bind_error(listen, error) from error
    return sock


def _bind_path(path: str) -> socket.socket:
    """Bind to a path; a socket that a server has left there is taken away, one that answers is not."""
    if Path(path).is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                with suppress(FileNotFoundError):
                    Path(path).unlink()
            except OSError as error:
                raise StartError(f"`--uds` {path!r} cannot be used: {error.strerror}") from error
            else:
                raise StartError(f"`--uds` {path!r} is in use: stop what listens there, or choose another")
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise StartError(f"`--uds` {path!r} cannot be bound to: {error.strerror or error}") from error
    return sock


def _inherited(fd: int) -> socket.socket:
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        raise StartError(f"`--fd` {fd} is not an open file descriptor", exit_code=2) from error
    if not is_socket:
        raise StartError(f"`--fd` {fd} is not a socket", exit_code=2)
    return socket.socket(fileno=fd)


def bind_error(listen: Listen, error: OSError) -> StartError:
    """Word the failure to bind to a port, or to listen there."""
    if error.errno == errno.EADDRINUSE:
        return StartError(
            f"Port {listen.port} on {listen.host} is in use: stop what listens there, or choose another with "
            "`--port` (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"Port {listen.port} needs privileges that this user lacks; choose one above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(f"`--host` {listen.host} is not an address of this machine", exit_code=2)
    return StartError(f"Cannot bind to {listen.host}:{listen.port}: {error.strerror}")


def is_open(sock: socket.socket) -> bool:
    """Tell whether the socket can be reached from other machines."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def url(sock: socket.socket, *, scheme: str = "http") -> str:
    """Return the address of a bound socket for people on this machine."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return f"{scheme}+unix://{sock.getsockname()}:"
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
