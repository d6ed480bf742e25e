"""An engine in this process in the place of a server: what `engine=` means.

This package knows no engine. What is installed beside it does: an entry point of the group `myllm.engines` is
a function that takes the object and returns what opens connections to it (`Endpoint.dial`), or None when the
object is nothing that it serves. The other end of such a connection speaks HTTP/1.1 as a server does, so
everything above works as it does with one.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from .endpoints import Endpoint
from .errors import InvalidParameterError, MissingExtraError

GROUP = "myllm.engines"
URL = "http://engine"
"""Stands for the engine in messages and in the header `Host`; no name is ever looked up."""


def engine_endpoint(engine: Any) -> Endpoint:
    """Return the endpoint of an engine in this process.

    Args:
        engine: an `AsyncEngine` or an `LLM` of `myllm_engine`, or what another installed package serves. It
            stays the caller's: closing clients closes no engine.

    Raises:
        MissingExtraError: no engine is installed, or not all of it.
        InvalidParameterError: the object is no engine that anything installed serves.
    """
    entries = importlib.metadata.entry_points(group=GROUP)
    hint = "Install it: pip install 'myllm-suite[engine]'."
    if not entries:
        raise MissingExtraError("No engine is installed that could be served in this process.", hint=hint)
    for entry in entries:
        try:
            serve = entry.load()
        except ImportError as exc:
            raise MissingExtraError(f"{exc}", hint=hint) from exc
        if (dial := serve(engine)) is not None:
            return Endpoint(URL, dial=dial)
    raise InvalidParameterError(
        f"`engine={engine!r}` is no engine that can be served here: it takes an `AsyncEngine` or an `LLM` of "
        "`myllm_engine`.",
        param="engine",
    )


def refuse_places(**given: Any) -> None:
    """Refuse arguments that say where or how to connect, next to an engine; None is one not given.

    Raises:
        InvalidParameterError: naming the first of them.
    """
    for name, value in given.items():
        if value is not None:
            raise InvalidParameterError(
                f"`engine` is in this process, where `{name}` says nothing: leave it out.", param=name
            )
