"""A client's settings for DSPy's saved programs, as JSON and in pickles: where it goes, and nothing secret.

API keys, headers, proxies and passwords are not saved: after loading, the key comes from `MYLLM_API_KEY`.
A pickle cannot know whether it goes to a file (`program.save(…, save_program=True)`) or to another process
(multiprocessing, joblib); so none has secrets, and worker processes, too, read the key from the environment,
which they inherit. Hooks are not saved either: like DSPy's callbacks, they belong to the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dspy import lm15

from myllm.base import BaseClient
from myllm.dialects import Dialect, get_dialect

from .. import _clients as clients
from .._clients import client_arguments as client_arguments

_INSTEAD = "Save the program without its LM, and set the LM after loading."


class PickledClient:
    """What stands for a client in a pickle: loading it makes the client again, without what is secret."""

    def __init__(self, client: BaseClient) -> None:
        self.client = client

    def __reduce__(self) -> tuple[Any, ...]:
        settings = self.client.__getstate__()  # its constructor's arguments
        clients.require_servers(settings, _INSTEAD)
        del settings["headers"], settings["hooks"]
        settings["endpoints"] = clients.places(settings)
        settings["http"] = clients.public(settings["http"])
        if not isinstance(settings["dialect"], str) and clients.is_built_in(settings["dialect"]):
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
    return clients.dump_client(client, _INSTEAD)


def dump_supports(supports: lm15.ModelSupport) -> dict[str, bool]:
    """Return what is stated of a model's abilities."""
    return {name: value for name, value in asdict(supports).items() if value is not None}


def load_supports(given: lm15.ModelSupport | Mapping[str, Any] | None) -> lm15.ModelSupport:
    """Read a statement of a model's abilities, or what JSON has made of it."""
    return given if isinstance(given, lm15.ModelSupport) else lm15.ModelSupport(**(given or {}))
