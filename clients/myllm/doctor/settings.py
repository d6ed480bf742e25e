"""Where the settings come from, and what is installed here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies

from .._version import __version__
from ..endpoints import Endpoint
from ..transport.options import HTTPOptions
from .report import Finding

_DISTRIBUTION = "myllm-suite"
_REQUIREMENT = re.compile(r"""([\w.-]+).*\bextra\s*==\s*["']([\w-]+)["']""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the URL and the key come from.

    Attributes:
        given: the URL as it was written, before it was normalised; None for the default.
        url, key: "argument", a variable's name, "default", or (of the key) "none".
    """

    given: str | None
    url: str
    key: str


def sources(url: str | None, api_key: str | None, environ: Mapping[str, str] = os.environ) -> Sources:
    """Say where `resolve_endpoints(url, api_key)` takes things from."""
    given: str | None = url
    source = "argument"
    if not url:
        names = [name for name in ("MYLLM_BASE_URL", "OPENAI_BASE_URL") if environ.get(name)]
        source = names[0] if names else "default"
        given = environ[source] if names else None
    keys = ("MYLLM_API_KEY", *(("OPENAI_API_KEY",) if source == "OPENAI_BASE_URL" else ()))
    key = "argument" if api_key else next((name for name in keys if environ.get(name)), "none")
    return Sources(given=given, url=source, key=key)


def look_at_settings(endpoint: Endpoint, http: HTTPOptions, origin: Sources) -> Iterator[Finding]:
    """Yield what is set and installed; sends nothing."""
    yield _url(endpoint, origin)
    yield _key(endpoint, origin)
    yield _proxy(endpoint, http)
    versions = {
        "myllm": __version__,
        "python": platform.python_version(),
        "httpx": importlib.metadata.version("httpx"),
        "httpcore": importlib.metadata.version("httpcore"),
    }
    yield Finding(
        check="versions",
        section="Settings",
        status="ok",
        summary=", ".join(f"{name} {version}" for name, version in versions.items()),
        data=versions,
    )
    extras = installed_extras()
    there = [name for name, missing in extras.items() if not missing]
    yield Finding(
        check="extras",
        section="Settings",
        status="ok",
        summary=(", ".join(there) or "none") + " installed",
        data={"installed": there, "missing": {name: missing for name, missing in extras.items() if missing}},
    )


def installed_extras() -> dict[str, list[str]]:
    """Return, for each optional extra, the packages that it lacks here; versions are not compared."""
    extras: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return {}
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        if found is None or found[1].replace("_", "-") == _DISTRIBUTION:
            continue
        missing = extras.setdefault(found[2], [])
        try:
            importlib.metadata.version(found[1])
        except importlib.metadata.PackageNotFoundError:
            missing.append(found[1])
    return {name: extras[name] for name in sorted(extras) if name not in ("all", "dev")}


def _url(endpoint: Endpoint, origin: Sources) -> Finding:
    where = {"argument": "as given", "default": "the default: neither given nor in MYLLM_BASE_URL"}
    words = where.get(origin.url, f"from {origin.url}")
    # A URL that the normaliser refused, for its credentials, never gets here.
    if origin.given is not None and origin.given.strip() != endpoint.url:
        words += f": {origin.given!r}"
    return Finding(
        check="url",
        section="Settings",
        status="ok",
        summary=f"{endpoint.url} ({words})",
        data={"url": endpoint.url, "source": origin.url, "given": origin.given},
    )


def _key(endpoint: Endpoint, origin: Sources) -> Finding:
    summary, advice = f"a key, from {origin.key}", None
    if origin.key == "argument":
        summary = "a key, as given"
    if endpoint.api_key is None:
        summary = "no key"
        if os.environ.get("OPENAI_API_KEY"):
            summary += "; OPENAI_API_KEY belongs to the server of OPENAI_BASE_URL and is not sent to another"
    elif urlsplit(endpoint.url).scheme == "http" and not endpoint.is_loopback:
        advice = "Use https, or a network that you trust: plain http shows the key to everyone on the way."
    return Finding(
        check="api_key",
        section="Settings",
        status="ok" if advice is None else "warning",
        summary=summary,
        advice=advice,
        data={"given": endpoint.api_key is not None, "source": origin.key},
    )


def _proxy(endpoint: Endpoint, http: HTTPOptions) -> Finding:
    known = {name: url for name, url in getproxies().items() if name != "no"} if http.trust_env else {}
    used = http.proxy_for(endpoint)
    if used is not None:
        summary = f"requests go through {_shown(used.url)}"
    elif known:
        why = (
            "this machine is never reached through one" if endpoint.is_loopback else "it does not apply here"
        )
        summary = f"none for this server: the environment names one, and {why}"
    else:
        summary = "none"
    return Finding(
        check="proxy",
        section="Settings",
        status="ok",
        summary=summary,
        data={"used": None if used is None else _shown(used.url), "environment": sorted(known)},
    )


def _shown(url: object) -> str:
    """Return a proxy's URL without the password that it may hold."""
    scheme, host, port = (getattr(url, part) for part in ("scheme", "host", "port"))
    return f"{scheme.decode()}://{host.decode()}:{port}"
