"""Where a server is: one normaliser for every way to write it, and the settings from the environment.

Order, everywhere: explicit argument, then `MYLLM_*`, then the generic variable, then the default.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit, urlunsplit

from .errors import InvalidParameterError

LOCALHOST = "http://localhost"
DEFAULT_URL = f"{LOCALHOST}:8000"
PortSpec = int | str | Iterable[int] | None
UrlSpec = str | Sequence[str]
# What is copied from a `curl` command, or from an SDK that wants the whole address.
_ROUTE = re.compile(r"/v1/(?:chat/completions|completions|embeddings|models|responses)$")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server: its URL, kept without `/v1` and trailing slash, the key it wants, and its share of the
    work.

    `weight` counts against the other servers' weights: one of 2.0 gets twice the calls of one of 1.0 under
    the policies "weighted", "least_in_flight" and "affinity".

    `dial` opens a connection where none is made to the URL: it returns a connected stream socket, or raises
    an OSError. `engines.engine_endpoint` makes such an endpoint.

    Raises:
        InvalidParameterError: the URL is not a server's, the key can't stand in a header, or the weight is
            not above 0.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    weight: float = 1.0
    dial: Callable[[], socket.socket] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", normalize_url(self.url))
        if self.api_key is not None and not isinstance(self.api_key, str):
            raise InvalidParameterError("`api_key` must be a text.", param="api_key")
        if self.api_key is not None:
            # `open("key").read()` ends in a newline, which is no part of the key.
            key = self.api_key.strip()
            if not (key.isascii() and key.isprintable()):
                raise InvalidParameterError(
                    "`api_key` holds characters that no HTTP header can carry.", param="api_key"
                )
            object.__setattr__(self, "api_key", key or None)
        if not (isinstance(self.weight, int | float) and 0 < self.weight < float("inf")):
            raise InvalidParameterError(f"`weight={self.weight!r}` must be a number above 0.", param="weight")

    @property
    def host(self) -> str:
        """The host name, without port."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine, where no proxy belongs."""
        host = self.host
        return (
            self.dial is not None or host in ("localhost", "::1", "0.0.0.0", "::") or host.startswith("127.")
        )


def normalize_url(url: str, port: int | None = None) -> str:
    """Return the root URL of a server.

    Accepts `localhost`, `localhost:8000`, `http://host`, `http://host:8000/`, `http://host:8000/v1` and
    paths in front of `/v1` (a server behind a prefix). A `port` fills in where the URL names none.

    Raises:
        InvalidParameterError: no host, an unknown scheme, credentials, a query, a route behind `/v1`, or a
            port that contradicts.
    """
    if not isinstance(url, str):
        instead = "give it in `endpoints=[…]`" if isinstance(url, Endpoint) else "write http://localhost:8000"
        raise InvalidParameterError(f"`url={url!r}` is no text: {instead}.", param="url")
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
    except ValueError:
        raise _not_an_address(url) from None
    if parts.scheme not in ("http", "https"):
        raise InvalidParameterError(
            f"`url={url!r}`: the scheme is {parts.scheme!r}, but only http and https are spoken here.",
            param="url",
        )
    if parts.username or parts.password:
        raise InvalidParameterError(
            "`url` holds credentials, which end up in logs: give them as `api_key=` or `headers=`.",
            param="url",
        )
    if not parts.hostname or parts.query or parts.fragment:
        raise _not_an_address(url)
    try:
        own_port = parts.port
    except ValueError as exc:
        raise InvalidParameterError(f"`url={url!r}`: {str(exc).lower()}.", param="url") from None
    if port is not None and own_port is not None and own_port != port:
        raise InvalidParameterError(
            f"`url={url!r}` names port {own_port}, `port={port}` another one: give one of them.", param="port"
        )
    if parts.hostname.isdigit():
        # The network would take it for an IPv4 address written as one number.
        raise InvalidParameterError(
            f"`url={url!r}` is a number, and no host: write {LOCALHOST}:{parts.hostname}.", param="url"
        )
    try:
        parts.hostname.encode("ascii" if parts.hostname.isascii() else "idna")
    except UnicodeError:
        raise _not_an_address(url) from None
    if any(character.isspace() for character in parts.hostname) or own_port == 0:
        raise _not_an_address(url)
    use_port = own_port if own_port is not None else port
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    netloc = host if use_port is None else f"{host}:{use_port}"
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~-._")
    if route := _ROUTE.search(path):
        raise InvalidParameterError(
            f"`url={url!r}` leads to one route of a server: leave out {route[0]!r}.", param="url"
        )
    if path.endswith("/v1"):
        path = path[: -len("/v1")]
    return urlunsplit((parts.scheme, netloc, path.rstrip("/"), "", ""))


def _not_an_address(url: str) -> InvalidParameterError:
    shown = url.split("?", 1)[0].rsplit("@", 1)[-1]  # what follows or precedes may be a secret
    return InvalidParameterError(
        f"`url`: {shown!r} is not the address of a server alone: it looks like http://localhost:8000.",
        param="url",
    )


def endpoints_from(url: UrlSpec, port: PortSpec = None, api_key: str | None = None) -> tuple[Endpoint, ...]:
    """Return one endpoint for each URL and port, in the order given; the arguments are not changed.

    Each port goes with each URL that names none. In a list, URLs with a port of their own keep it and `port`
    fills in for the others (DSPy's clients ignored it there); a single URL may not contradict `port`.
    """
    urls = [url] if isinstance(url, str) else list(url)
    ports = _ports(port)
    if not urls:
        raise InvalidParameterError("`url` is an empty list: name at least one server.", param="url")
    found: dict[str, None] = {}
    for one in urls:
        keeps_own = not isinstance(url, str) and _names_port(one)
        found.update(dict.fromkeys(normalize_url(one, p) for p in ([None] if keeps_own else ports)))
    return tuple(Endpoint(u, api_key) for u in found)


def _names_port(url: str) -> bool:
    return ":" in normalize_url(url).split("://", 1)[1].rsplit("]", 1)[-1]


def _ports(port: PortSpec) -> list[int | None]:
    if port is None:
        return [None]
    given = [port] if isinstance(port, int | str) else list(port)
    if not given:
        raise InvalidParameterError("`port` is an empty list: name at least one port.", param="port")
    ports: list[int | None] = []
    for one in given:
        try:
            number = int(one)
        except (TypeError, ValueError):
            number = -1
        if isinstance(one, bool) or not 0 < number < 65536:
            raise InvalidParameterError(f"`port={one!r}` is not a port: 1 to 65535.", param="port")
        ports.append(number)
    return ports


def is_named(base_url: UrlSpec | None, environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether the argument or the environment names a server; else the default stands for it."""
    env = os.environ if environ is None else environ
    return bool(base_url or env.get("MYLLM_BASE_URL") or env.get("OPENAI_BASE_URL"))


def resolve_endpoints(
    base_url: UrlSpec | None,
    api_key: str | None,
    environ: Mapping[str, str] | None = None,
    *,
    port: PortSpec = None,
) -> tuple[Endpoint, ...]:
    """Return the endpoints for what was given and what the environment says.

    URL: argument, `MYLLM_BASE_URL`, `OPENAI_BASE_URL`, `http://localhost:8000`. Key: argument,
    `MYLLM_API_KEY`, and `OPENAI_API_KEY` only when the URL came from `OPENAI_BASE_URL` too: the key of one
    service is never shown to another. A `port` without a URL means that port of this machine.
    """
    env = os.environ if environ is None else environ
    key = api_key or env.get("MYLLM_API_KEY")
    if port is not None:
        return endpoints_from(base_url or LOCALHOST, port, key or None)
    url: UrlSpec | None = base_url or env.get("MYLLM_BASE_URL")
    if not url and (url := env.get("OPENAI_BASE_URL")):
        key = key or env.get("OPENAI_API_KEY")
    return endpoints_from(url or DEFAULT_URL, None, key or None)
