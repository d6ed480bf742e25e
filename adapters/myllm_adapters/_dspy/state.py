"""A client's settings for DSPy's saved programs, as JSON and in pickles: where it goes, and nothing secret.

API keys, headers, proxies and passwords are not saved: after loading, the key comes from `MYLLM_API_KEY`.
A pickle cannot know whether it goes to a file (`program.save(…, save_program=True)`) or to another process
(multiprocessing, joblib); so none has secrets, and worker processes, too, read the key from the environment,
which they inherit. Hooks are not saved either: like DSPy's callbacks, they belong to the process.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from dspy import lm15

import myllm
from myllm.base import BaseClient
from myllm.cache import Cache
from myllm.dialects import DIALECTS, Dialect, get_dialect
from myllm.endpoints import resolve_endpoints

# Settings that JSON can hold as they are.
_PLAIN = (
    "policy", "health_interval", "hedge_after", "max_concurrency", "requests_per_second", "coalesce",
    "message_policy",
)  # fmt: skip
_USUAL = {
    name: parameter.default for name, parameter in inspect.signature(BaseClient.__init__).parameters.items()
}


class PickledClient:
    """What stands for a client in a pickle: loading it makes the client again, without what is secret."""

    def __init__(self, client: BaseClient) -> None:
        self.client = client

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self.client.__getstate__()  # its constructor's arguments
        _require_servers(settings)
        del settings["headers"], settings["hooks"]
        settings["endpoints"] = _places(settings)
        settings["http"] = _public(settings["http"])
        if not isinstance(settings["dialect"], str) and _is_built_in(settings["dialect"]):
            settings["dialect"] = self.client.dialect
        return _make, (type(self.client), settings)


def _make(cls: type[BaseClient], settings: dict[str, Any]) -> BaseClient:
    return cls(**client_arguments(settings))


def dialect_of(client: BaseClient, endpoint: str | None = None) -> Dialect:
    """Return a client's dialect: the one given, or what its server (at `endpoint`) turned out to be.

    As long as no server has told, that is OpenAI's, which all resemble.
    """
    given = client.__getstate__()["dialect"]
    if given != "auto":
        return get_dialect(given)
    for status in client.endpoints():
        if status.server is not None and endpoint in (None, status.url):
            return get_dialect(status.server.dialect)
    return get_dialect("openai")


def servers(client: BaseClient) -> str:
    """Return what tells a client's servers from others: their URLs, in one order."""
    return " ".join(sorted({status.url for status in client.endpoints()}))


def dump_client(client: BaseClient) -> dict[str, Any]:
    """Return the keyword arguments that make such a client again, as JSON.

    Raises:
        InvalidParameterError: the dialect or the policy is an object of the caller's, which JSON cannot hold.
    """
    settings = client.__getstate__()
    dialect, policy = settings["dialect"], settings["policy"]
    if dialect != "auto" and not _is_built_in(get_dialect(dialect)):
        raise _own("dialect", dialect)
    _require_servers(settings)
    if not isinstance(policy, str):
        raise _own("policy", policy)
    state: dict[str, Any] = {
        "dialect": client.dialect,
        "max_retries": client.max_retries,
        **{name: settings[name] for name in _PLAIN if settings[name] != _USUAL[name]},
        **client.defaults,
    }
    places = _places(settings)
    if any(place["weight"] != 1 for place in places):
        state["endpoints"] = places
    else:
        state["base_url"] = [place["url"] for place in places]
    if client.timeout != myllm.Timeout():
        state["timeout"] = asdict(client.timeout)
    if (breaker := settings["breaker"]) != myllm.Breaker():
        state["breaker"] = None if breaker is None else asdict(breaker)
    if settings["cache"] is not None:
        cache = settings["cache"].__getstate__()
        state["cache"] = {**cache, "path": None if cache["path"] is None else str(cache["path"])}
    http = _public(settings["http"])
    changed = {f.name: getattr(http, f.name) for f in fields(http) if getattr(http, f.name) != f.default}
    if changed:
        state["http"] = changed
    return state


def _require_servers(settings: Mapping[str, Any]) -> None:
    """Refuse to save a client of an engine in this process: no other process has it."""
    if any(endpoint.dial is not None for endpoint in settings["endpoints"]):
        raise myllm.InvalidParameterError(
            "The LM's `engine` lives in this process and cannot be saved.",
            param="engine",
            hint="Save the program without its LM, and set the LM after loading.",
        )


def _own(name: str, value: Any) -> myllm.InvalidParameterError:
    return myllm.InvalidParameterError(
        f"`{name}` is an object of your own ({type(value).__name__}) and cannot be saved as JSON.",
        param=name,
        hint="Save the program without its LM and set the LM after loading, or save it whole "
        "(`program.save(folder, save_program=True)`).",
    )


def _is_built_in(dialect: Dialect) -> bool:
    return DIALECTS.get(dialect.name) is dialect


def _public(http: myllm.HTTPOptions) -> myllm.HTTPOptions:
    return replace(http, proxy=None, auth=None)


def _places(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a client's servers without their keys."""
    return [{"url": endpoint.url, "weight": endpoint.weight} for endpoint in settings["endpoints"]]


def client_arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's arguments with what JSON has made plain made whole again."""
    arguments = dict(state)
    for name, cls in (("timeout", myllm.Timeout), ("breaker", myllm.Breaker), ("cache", Cache)):
        if isinstance(arguments.get(name), Mapping):
            arguments[name] = cls(**arguments[name])
    if isinstance(arguments.get("http"), Mapping):
        http = dict(arguments["http"])
        if isinstance(http.get("cert"), list):
            http["cert"] = tuple(http["cert"])
        arguments["http"] = myllm.HTTPOptions(**http)
    if arguments.get("endpoints"):
        arguments["endpoints"] = [
            replace(resolve_endpoints(place["url"], None)[0], weight=place["weight"])
            if isinstance(place, Mapping)
            else place
            for place in arguments["endpoints"]
        ]
    return arguments


def dump_supports(supports: lm15.ModelSupport) -> dict[str, bool]:
    """Return what is stated of a model's abilities."""
    return {name: value for name, value in asdict(supports).items() if value is not None}


def load_supports(given: lm15.ModelSupport | Mapping[str, Any] | None) -> lm15.ModelSupport:
    """Read a statement of a model's abilities, or what JSON has made of it."""
    return given if isinstance(given, lm15.ModelSupport) else lm15.ModelSupport(**(given or {}))
