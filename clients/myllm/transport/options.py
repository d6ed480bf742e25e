"""How to reach servers: certificates, proxies, basic authentication, and the limits of a connection pool."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ..endpoints import Endpoint
from ..errors import InvalidParameterError

# httpx caps a pool at 100 connections, which starves large batches (vllm#7241); the server's queue and the
# caller's own concurrency are the limits that are meant.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPOptions:
    """How to reach the servers.

    Attributes:
        verify: False trusts any certificate; a path names a CA bundle (file or folder).
        cert: client certificate: a PEM file, or (certificate, key).
        proxy: URL of a proxy for all requests; without it the environment's proxies are used, never for
            servers on this machine.
        trust_env: False ignores the environment's proxies altogether.
        auth: (user, password) for HTTP basic authentication.

    Raises:
        InvalidParameterError: `proxy` is no URL of a proxy.
    """

    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str | None = field(default=None, repr=False)
    auth: tuple[str, str] | None = field(default=None, repr=False)
    trust_env: bool = True

    def __post_init__(self) -> None:
        if self.proxy is None:
            return
        try:
            httpx.Proxy(self.proxy)
            known = urlsplit(self.proxy).hostname is not None
        except (ValueError, httpx.InvalidURL):
            known = False
        if not known:
            # Its text is not repeated: it may hold a password.
            raise InvalidParameterError(
                "`proxy` is not the URL of a proxy: it looks like http://user:password@host:3128.",
                param="proxy",
            )

    def client_arguments(self, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
        """Return the arguments for `httpx.Client` or `httpx.AsyncClient`."""
        mounts: dict[str, None] = {}
        if self.proxy is None and self.trust_env:
            # A proxy from the environment must not catch loopback (llama_index#13640, ollama#9141).
            for endpoint in endpoints:
                if endpoint.is_loopback:
                    mounts[
                        f"all://{'[' + endpoint.host + ']' if ':' in endpoint.host else endpoint.host}"
                    ] = None
        arguments: dict[str, Any] = {
            "verify": self._ssl(endpoints),
            "proxy": self.proxy,
            "auth": self.auth,
            "trust_env": self.trust_env,
            "limits": _LIMITS,
            "follow_redirects": False,
        }
        if mounts:
            arguments["mounts"] = mounts
        return arguments

    def _ssl(self, endpoints: Sequence[Endpoint]) -> ssl.SSLContext | bool:
        if not any(endpoint.url.startswith("https:") for endpoint in endpoints):
            return False  # Nothing to verify; loading the system's certificates takes tens of milliseconds.
        try:
            if self.verify is False:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif isinstance(self.verify, str):
                context = ssl.create_default_context()
                context.load_verify_locations(**_location(self.verify))
            else:
                context = httpx.create_ssl_context()
            if self.cert is not None:
                context.load_cert_chain(*((self.cert,) if isinstance(self.cert, str) else self.cert))
        except OSError as exc:
            raise InvalidParameterError(
                f"The certificates (`verify={self.verify!r}`, `cert={self.cert!r}`) cannot be loaded: {exc}.",
                param="verify",
            ) from exc
        return context


def _location(path: str) -> dict[str, str]:
    return {"capath": path} if Path(path).is_dir() else {"cafile": path}
