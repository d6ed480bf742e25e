"""A client's settings as JSON, for DSPy's saved programs: where it goes, and nothing secret.

API keys, headers, proxies and passwords are not saved: after loading, the key comes from `MYLLM_API_KEY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dspy import lm15

import myllm
from myllm.client import BaseClient


def dump_client(client: BaseClient) -> dict[str, Any]:
    """Return the keyword arguments that make such a client again."""
    settings = client.__getstate__()  # its constructor's arguments
    http: myllm.HTTPOptions = settings["http"]
    state: dict[str, Any] = {
        "base_url": [endpoint.url for endpoint in client.endpoints],
        "dialect": client.dialect,
        **client.defaults,
    }
    if client.timeout != myllm.Timeout():
        state["timeout"] = asdict(client.timeout)
    if http.verify is not True or http.cert is not None:
        state["http"] = {"verify": http.verify, "cert": http.cert}
    return state


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
