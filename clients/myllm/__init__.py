"""myllm: the client SDK for your own LLM servers.

    from myllm import Client, HFClientVLLM, HFClientTGI

Names are loaded when they are first used: importing the package loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .client import AsyncClient, Client
    from .compat import HFClientTGI, HFClientVLLM
    from .endpoints import Endpoint
    from .errors import (
        APIStatusError,
        AuthenticationError,
        BadRequestError,
        ConnectError,
        ConnectTimeoutError,
        ContextLengthError,
        IncompleteStreamError,
        InvalidParameterError,
        InvalidResponseError,
        MissingExtraError,
        MyLLMError,
        NotFoundError,
        OverloadedError,
        RateLimitError,
        RequestTimeoutError,
        ServerError,
        ServerStartError,
        UnknownParameterError,
        UnsupportedFeatureError,
        ValidationError,
    )
    from .server import Server
    from .stream import AsyncStream, Stream
    from .transport.options import HTTPOptions
    from .types import (
        ChatChunk,
        ChatCompletion,
        Completion,
        CompletionChunk,
        Message,
        ModelInfo,
        ToolCall,
        Usage,
    )
    from .wire import Timeout

_HOMES = {
    "client": ("AsyncClient", "Client"),
    "compat": ("HFClientTGI", "HFClientVLLM"),
    "endpoints": ("Endpoint",),
    "errors": (
        "APIStatusError",
        "AuthenticationError",
        "BadRequestError",
        "ConnectError",
        "ConnectTimeoutError",
        "ContextLengthError",
        "IncompleteStreamError",
        "InvalidParameterError",
        "InvalidResponseError",
        "MissingExtraError",
        "MyLLMError",
        "NotFoundError",
        "OverloadedError",
        "RateLimitError",
        "RequestTimeoutError",
        "ServerError",
        "ServerStartError",
        "UnknownParameterError",
        "UnsupportedFeatureError",
        "ValidationError",
    ),
    "server": ("Server",),
    "stream": ("AsyncStream", "Stream"),
    "transport.options": ("HTTPOptions",),
    "types": (
        "ChatChunk",
        "ChatCompletion",
        "Completion",
        "CompletionChunk",
        "Message",
        "ModelInfo",
        "ToolCall",
        "Usage",
    ),
    "wire": ("Timeout",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "APIStatusError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "ChatChunk",
    "ChatCompletion",
    "Client",
    "Completion",
    "CompletionChunk",
    "ConnectError",
    "ConnectTimeoutError",
    "ContextLengthError",
    "Endpoint",
    "HFClientTGI",
    "HFClientVLLM",
    "HTTPOptions",
    "IncompleteStreamError",
    "InvalidParameterError",
    "InvalidResponseError",
    "Message",
    "MissingExtraError",
    "ModelInfo",
    "MyLLMError",
    "NotFoundError",
    "OverloadedError",
    "RateLimitError",
    "RequestTimeoutError",
    "Server",
    "ServerError",
    "ServerStartError",
    "Stream",
    "Timeout",
    "ToolCall",
    "UnknownParameterError",
    "UnsupportedFeatureError",
    "Usage",
    "ValidationError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
