"""An engine in this process in the place of a server: what `engine=` means.

This package knows no engine. What is installed beside it does: an entry point of the group `myllm.engines`
names an `InstalledEngine`, which opens connections to engines (`Endpoint.dial`) and starts them. The other
end of such a connection speaks HTTP/1.1 as a server does, so everything above works as it does with one.
"""

from __future__ import annotations

import importlib.metadata
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .endpoints import Endpoint
from .errors import InvalidParameterError, MissingExtraError, ServerStartError

GROUP = "myllm.engines"
URL = "http://engine"
"""Stands for the engine in messages and in the header `Host`; no name is ever looked up."""

_HINT = "Install it: pip install 'myllm-suite[engine]'."


class InstalledEngine(Protocol):
    """What an entry point of the group `myllm.engines` names."""

    def __call__(self, engine: Any, /) -> Callable[[], socket.socket] | None:
        """Return what opens connections to `engine`, or None when that is nothing it serves."""

    def start(self, model: str, /) -> Any:
        """Load a model, named as its engine names models, and return the engine; it ends with the process.

        Any exception says, in its text, why that cannot be done and what to do.
        """


def engine_endpoint(engine: Any) -> Endpoint:
    """Return the endpoint of an engine in this process.

    Args:
        engine: an `AsyncEngine` or an `LLM` of `myllm_engine`, or what another installed package serves. It
            stays the caller's: closing clients closes no engine. Or a model's name: see `started_engine`.

    Raises:
        MissingExtraError: no engine is installed, or not all of it.
        InvalidParameterError: the object is no engine that anything installed serves.
        ServerStartError: the model of that name could not be loaded.
    """
    if isinstance(engine, str):
        engine = started_engine(engine)
    for installed in _installed():
        if (dial := installed(engine)) is not None:
            return Endpoint(URL, dial=dial)
    raise InvalidParameterError(
        f"`engine={engine!r}` is no engine that can be served here: it takes an `AsyncEngine` or an `LLM` of "
        "`myllm_engine`, or the name of a model.",
        param="engine",
    )


_started: dict[str, Any] = {}
_turns: dict[str, threading.Lock] = {}
_registry = threading.Lock()


def started_engine(model: str) -> Any:
    """Return the engine of a model in this process: whoever asks first starts it, all others share it.

    Blocks while the model is loaded. The engine runs until the process ends.

    Args:
        model: as `myllm serve` takes it: "smollm2", a folder, a hub id, a GGUF file.

    Raises:
        MissingExtraError: no engine is installed, or not all of it.
        ServerStartError: the model could not be loaded.
    """
    if model in _started:
        return _started[model]
    with _registry:
        turn = _turns.setdefault(model, threading.Lock())
    with turn:  # whoever wants another model does not wait for this one
        if model not in _started:
            # The first engine that is installed is the one that starts models.
            installed = next(_installed())
            try:
                _started[model] = installed.start(model)
            except Exception as exc:  # whatever the engine's own errors are: nobody here knows their classes
                raise ServerStartError(
                    f"The model {model!r} could not be loaded in this process: {exc}.",
                    hint="Name a model that `myllm serve` can load, or the server that serves it.",
                ) from exc
        return _started[model]


def _installed() -> Iterator[InstalledEngine]:
    entries = importlib.metadata.entry_points(group=GROUP)
    if not entries:
        raise MissingExtraError("No engine is installed that could be served in this process.", hint=_HINT)
    for entry in entries:
        try:
            yield entry.load()
        except ImportError as exc:
            raise MissingExtraError(f"{exc}", hint=_HINT) from exc


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
