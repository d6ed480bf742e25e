"""A client's settings for DSPy's saved programs, as JSON and in pickles: where it goes, and nothing secret.

API keys, headers, proxies and passwords are not saved: after loading, the key comes from `MYLLM_API_KEY`.
A pickle cannot know whether it goes to a file (`program.save(…, save_program=True)`) or to another process
(multiprocessing, joblib); so none has secrets, and worker processes, too, read the key from the environment,
which they inherit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from dspy import lm15

import myllm
from myllm.base import BaseClient
from myllm.dialects import DIALECTS, Dialect, get_dialect


class PickledClient:
    """What stands for a client in a pickle: loading it makes the client again, without what is secret."""

    def __init__(self, client: BaseClient) -> None:
        self.client = client

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self.client.__getstate__()  # its constructor's arguments
        for name in ("headers", "endpoints"):
            del settings[name]
        settings["base_url"] = [endpoint.url for endpoint in self.client.endpoints()]
        settings["http"] = _public(settings["http"])
        if _is_built_in(dialect_of(self.client)):
            settings["dialect"] = self.client.dialect
        return _make, (type(self.client), settings)


def _make(cls: type[BaseClient], settings: dict[str, Any]) -> BaseClient:
    return cls(**settings)


def dialect_of(client: BaseClient) -> Dialect:
    """Return a client's dialect, which need not be one of the SDK's own."""
    return get_dialect(client.__getstate__()["dialect"])


def dump_client(client: BaseClient) -> dict[str, Any]:
    """Return the keyword arguments that make such a client again, as JSON.

    Raises:
        InvalidParameterError: the dialect is an object of the caller's, which JSON cannot hold.
    """
    if not _is_built_in(dialect := dialect_of(client)):
        raise myllm.InvalidParameterError(
            f"`dialect` is an object of your own ({type(dialect).__name__}) and cannot be saved as JSON.",
            param="dialect",
            hint="Save the program without its LM and set the LM after loading, or save it whole "
            "(`program.save(folder, save_program=True)`).",
        )
    state: dict[str, Any] = {
        "base_url": [endpoint.url for endpoint in client.endpoints()],
        "dialect": client.dialect,
        "max_retries": client.max_retries,
        **client.defaults,
    }
    if client.timeout != myllm.Timeout():
        state["timeout"] = asdict(client.timeout)
    http = _public(client.__getstate__()["http"])
    changed = {f.name: getattr(http, f.name) for f in fields(http) if getattr(http, f.name) != f.default}
    if changed:
        state["http"] = changed
    return state


def _is_built_in(dialect: Dialect) -> bool:
    return DIALECTS.get(dialect.name) is dialect


def _public(http: myllm.HTTPOptions) -> myllm.HTTPOptions:
    return replace(http, proxy=None, auth=None)


def client_arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's arguments with what JSON has made plain made whole again."""
    arguments = dict(state)
    if isinstance(arguments.get("timeout"), Mapping):
        arguments["timeout"] = myllm.Timeout(**arguments["timeout"])
    if isinstance(arguments.get("http"), Mapping):
        http = dict(arguments["http"])
        if isinstance(http.get("cert"), list):
            http["cert"] = tuple(http["cert"])
        arguments["http"] = myllm.HTTPOptions(**http)
    return arguments


def dump_supports(supports: lm15.ModelSupport) -> dict[str, bool]:
    """Return what is stated of a model's abilities."""
    return {name: value for name, value in asdict(supports).items() if value is not None}


def load_supports(given: lm15.ModelSupport | Mapping[str, Any] | None) -> lm15.ModelSupport:
    """Read a statement of a model's abilities, or what JSON has made of it."""
    return given if isinstance(given, lm15.ModelSupport) else lm15.ModelSupport(**(given or {}))
