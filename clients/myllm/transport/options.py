"""How to reach servers: certificates, proxies and basic authentication."""

from __future__ import annotations

import importlib.util
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore

from ..endpoints import Endpoint
from ..errors import InvalidParameterError

_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


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
        InvalidParameterError: `proxy` is no URL of a proxy, or `auth` no pair of texts.
    """

    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str | None = field(default=None, repr=False)
    auth: tuple[str, str] | None = field(default=None, repr=False)
    trust_env: bool = True

    def __post_init__(self) -> None:
        auth = self.auth
        if auth is not None and not (
            isinstance(auth, tuple | list) and [type(word) for word in auth] == [str, str]
        ):
            raise InvalidParameterError(
                "`auth` must be two texts, (user, password), for HTTP basic authentication.",
                param="auth",
            )
        if self.proxy is None:
            return
        parts = urlsplit(self.proxy)
        if parts.scheme not in _PROXY_SCHEMES or parts.hostname is None:
            # Its text is not repeated: it may hold a password.
            raise InvalidParameterError(
                "`proxy` is not the URL of a proxy: it looks like http://user:password@host:3128.",
                param="proxy",
            )

    def proxy_for(self, endpoint: Endpoint) -> httpcore.Proxy | None:
        """Return the proxy that requests to a server go through: the one given, else the environment's.

        A proxy from the environment never catches this machine (llama_index#13640, ollama#9141).
        """
        if endpoint.dial is not None:
            return None
        if self.proxy is not None:
            return _proxy(self.proxy)
        if not self.trust_env or endpoint.is_loopback or proxy_bypass(urlsplit(endpoint.url).netloc):
            return None
        known = getproxies()
        url = known.get(urlsplit(endpoint.url).scheme) or known.get("all")
        return None if not url else _proxy(url if "://" in url else f"http://{url}")

    def ssl_context(self) -> ssl.SSLContext:
        """Return what https servers are checked with.

        Raises:
            InvalidParameterError: the certificates cannot be loaded.
        """
        try:
            if self.verify is False:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif isinstance(self.verify, str):
                context = ssl.create_default_context()
                context.load_verify_locations(**_location(self.verify))
            elif self.trust_env and (
                own := os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
            ):
                context = ssl.create_default_context(**_location(own))
            else:
                context = httpcore.default_ssl_context()
            if self.cert is not None:
                context.load_cert_chain(*((self.cert,) if isinstance(self.cert, str) else self.cert))
        except OSError as exc:
            raise InvalidParameterError(
                f"The certificates (`verify={self.verify!r}`, `cert={self.cert!r}`) cannot be loaded: {exc}.",
                param="verify",
            ) from exc
        return context


def _proxy(url: str) -> httpcore.Proxy:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise InvalidParameterError(
            "The proxy is not a URL: `proxy=`, or `HTTP_PROXY`, `HTTPS_PROXY` or `ALL_PROXY` in the "
            "environment; it looks like http://user:password@host:3128.",
            param="proxy",
        ) from None
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise InvalidParameterError(
            "A SOCKS proxy needs one more package: pip install 'httpx[socks]'.", param="proxy"
        )
    auth = None
    if parts.username:
        auth = (unquote(parts.username), unquote(parts.password or ""))
    bare = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = parts.port or {"https": 443, "socks5": 1080, "socks5h": 1080}.get(parts.scheme, 80)
    return httpcore.Proxy(f"{parts.scheme}://{bare}:{port}/", auth=auth)


def _location(path: str) -> dict[str, Any]:
    return {"capath": path} if Path(path).is_dir() else {"cafile": path}
