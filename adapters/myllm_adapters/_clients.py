"""The client under an adapter: made from what a framework's user gives, and told as JSON without secrets."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import myllm
from myllm import InvalidParameterError, params
from myllm.base import BaseClient
from myllm.cache import Cache
from myllm.dialects import DIALECTS, Dialect, get_dialect
from myllm.endpoints import PortSpec, UrlSpec, resolve_endpoints
from myllm.engines import refuse_places

CALL_OPTIONS = frozenset({"extra_body", "session"})
"""Options of a call that an adapter's user says once, for all calls."""

# Settings that JSON can hold as they are.
_PLAIN = (
    "policy", "health_interval", "hedge_after", "max_concurrency", "requests_per_second", "coalesce",
    "message_policy",
)  # fmt: skip
_USUAL = {
    name: parameter.default for name, parameter in inspect.signature(BaseClient.__init__).parameters.items()
}


def async_client(
    model: str | None = None,
    base_url: UrlSpec | None = None,
    *,
    url: UrlSpec | None = None,
    port: PortSpec = None,
    api_key: str | None = None,
    client: BaseClient | None = None,
    engine: Any = None,
    **settings: Any,
) -> myllm.AsyncClient:
    """Return the client for what says where to go, in whichever way it is said.

    Args:
        model: the served model's name; None asks for the first one that the server serves.
        base_url, url, port, api_key: where the servers are; see `myllm.endpoints.resolve_endpoints`.
        client: instead, a client that there is already. An `AsyncClient` shares its connections; a `Client`
            lends its settings, as each kind has connections of its own.
        engine: instead, an engine in this process.
        **settings: as `myllm.AsyncClient` takes them, and default parameters; with `client`, those that
            `with_options` takes. `message_policy` is "auto" here, so that the roles of a conversation
            of several agents fit any chat template.

    Raises:
        UnknownParameterError, InvalidParameterError: an argument is not understood, or says the same as
            another one.
    """
    if base_url is not None and url is not None:
        raise InvalidParameterError("`url` and `base_url` are the same thing: give one of them.", param="url")
    base_url = url if base_url is None else base_url
    if client is not None:
        _refuse_beside_client(base_url=base_url, port=port, api_key=api_key, engine=engine)
        if not isinstance(client, BaseClient):
            raise InvalidParameterError(
                f"`client={client!r}` must be a `myllm.AsyncClient` or a `myllm.Client`.", param="client"
            )
        shared = (
            client if isinstance(client, myllm.AsyncClient) else myllm.AsyncClient(**client.__getstate__())
        )
        return shared.with_options(model=model, **settings)
    settings.setdefault("message_policy", "auto")
    if engine is not None:
        refuse_places(base_url=base_url, port=port, api_key=api_key)
        return myllm.AsyncClient(model=model, engine=engine, **settings)
    if port is None:
        return myllm.AsyncClient(base_url, model=model, api_key=api_key, **settings)
    endpoints = resolve_endpoints(base_url, api_key, port=port)
    return myllm.AsyncClient(model=model, endpoints=endpoints, **settings)


def _refuse_beside_client(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise InvalidParameterError(f"`client` says already where to go: leave `{name}` out.", param=name)


def refuse_unfit(options: Mapping[str, Any], framework: str, *, no_place: Collection[str]) -> None:
    """Refuse parameters that a framework has other ways for, or none.

    Args:
        options: parameters by any of their names; other options of a call are left alone.
        framework: its name, for errors.
        no_place: parameters for whose answer the framework has no place.

    Raises:
        InvalidParameterError: one of these, `tools`, or more than one answer.
    """
    values = params.canonical({name: options[name] for name in options if name in params.KNOWN_NAMES})
    if values.get("tools"):
        raise InvalidParameterError(
            f"`tools` come with each call of {framework}: give them to the agent.", param="tools"
        )
    if (values.get("n") or 1) != 1:
        raise InvalidParameterError(
            f"`n={values['n']!r}`: {framework} takes one answer to a call. Make a call for each.", param="n"
        )
    for name in no_place:
        value = values.get(name)
        if value is not None and value is not False:
            raise InvalidParameterError(
                f"`{name}={value!r}`: {framework}'s answers have no place for what it asks for.",
                param=name,
                hint="Ask for it with `myllm.AsyncClient`, which is the `client` under this.",
            )


def dump_client(client: BaseClient, instead: str) -> dict[str, Any]:
    """Return the keyword arguments that make such a client again, as JSON.

    API keys, headers, proxies, passwords and hooks are left out.

    Args:
        client: any client.
        instead: what to do where it cannot be saved, for the error.

    Raises:
        InvalidParameterError: the dialect or the policy is an object of the caller's, which JSON cannot hold,
            or the client's engine lives in this process.
    """
    settings = client.__getstate__()
    dialect, policy = settings["dialect"], settings["policy"]
    if dialect != "auto" and not is_built_in(get_dialect(dialect)):
        raise _own("dialect", dialect, instead)
    require_servers(settings, instead)
    if not isinstance(policy, str):
        raise _own("policy", policy, instead)
    state: dict[str, Any] = {
        "dialect": client.dialect,
        "max_retries": client.max_retries,
        **{name: settings[name] for name in _PLAIN if settings[name] != _USUAL[name]},
        **params.build(client.defaults).set_values(),  # a schema's class is its schema, then
    }
    found = places(settings)
    if any(place["weight"] != 1 for place in found):
        state["endpoints"] = found
    else:
        state["base_url"] = [place["url"] for place in found]
    if client.timeout != myllm.Timeout():
        state["timeout"] = asdict(client.timeout)
    if (breaker := settings["breaker"]) != myllm.Breaker():
        state["breaker"] = False if breaker is None else asdict(breaker)  # a null is left out by some writers
    if settings["cache"] is not None:
        cache = settings["cache"].__getstate__()
        state["cache"] = {**cache, "path": None if cache["path"] is None else str(cache["path"])}
    http = public(settings["http"])
    changed = {f.name: getattr(http, f.name) for f in fields(http) if getattr(http, f.name) != f.default}
    if changed:
        state["http"] = changed
    return state


def client_arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's arguments with what JSON has made plain made whole again."""
    arguments = dict(state)
    for name, cls in (("timeout", myllm.Timeout), ("breaker", myllm.Breaker), ("cache", Cache)):
        if isinstance(arguments.get(name), Mapping):
            arguments[name] = cls(**arguments[name])
    if arguments.get("breaker") is False:
        arguments["breaker"] = None
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


def require_servers(settings: Mapping[str, Any], instead: str) -> None:
    """Refuse to save a client of an engine in this process: no other process has it."""
    if any(endpoint.dial is not None for endpoint in settings["endpoints"]):
        raise InvalidParameterError(
            "The `engine` lives in this process and cannot be saved.", param="engine", hint=instead
        )


def _own(name: str, value: Any, instead: str) -> InvalidParameterError:
    return InvalidParameterError(
        f"`{name}` is an object of your own ({type(value).__name__}) and cannot be saved as JSON.",
        param=name,
        hint=instead,
    )


def is_built_in(dialect: Dialect) -> bool:
    """Tell whether a dialect is one of the SDK's own, which its name stands for."""
    return DIALECTS.get(dialect.name) is dialect


def public(http: myllm.HTTPOptions) -> myllm.HTTPOptions:
    """Return HTTP options without passwords."""
    return replace(http, proxy=None, auth=None)


def places(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a client's servers without their keys."""
    return [{"url": endpoint.url, "weight": endpoint.weight} for endpoint in settings["endpoints"]]
