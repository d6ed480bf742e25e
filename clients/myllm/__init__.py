"""myllm: the client SDK for your own LLM servers.

    from myllm import Client, HFClientVLLM, HFClientTGI

Names are loaded when they are first used: importing the package loads nothing else.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .balancer import (
        Breaker,
        EndpointStatus,
    )
    from .base import (
        EndpointTable,
    )
    from .batch import (
        BatchResult,
    )
    from .cache import (
        Cache,
        CacheStats,
    )
    from .cassette import (
        Cassette,
    )
    from .client import (
        AsyncClient,
        Client,
    )
    from .compat import (
        HFClientSGLang,
        HFClientTGI,
        HFClientVLLM,
    )
    from .endpoints import (
        Endpoint,
    )
    from .errors import (
        AllEndpointsDown,
        APIStatusError,
        AuthenticationError,
        BadRequestError,
        CassetteMiss,
        ConnectError,
        ConnectTimeoutError,
        ConstraintNotEnforced,
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
    from .hooks import (
        CallRecord,
        Hook,
    )
    from .options import (
        CallOptions,
    )
    from .server import (
        Server,
    )
    from .stream import (
        AsyncStream,
        Stream,
    )
    from .transport.engine import (
        AsyncEngineTransport,
        EngineTransport,
    )
    from .transport.options import (
        HTTPOptions,
    )
    from .transport.pool import (
        AsyncPoolTransport,
        PoolTransport,
    )
    from .types import (
        ChatChunk,
        ChatCompletion,
        Completion,
        CompletionChunk,
        Detokenized,
        Embeddings,
        Message,
        ModelInfo,
        ParsedChat,
        Tokens,
        ToolCall,
        Usage,
    )
    from .wire import (
        ServerInfo,
        Timeout,
    )

_HOMES = {
    "balancer": (
        "Breaker",
        "EndpointStatus",
    ),
    "base": ("EndpointTable",),
    "batch": ("BatchResult",),
    "cache": (
        "Cache",
        "CacheStats",
    ),
    "cassette": ("Cassette",),
    "client": (
        "AsyncClient",
        "Client",
    ),
    "compat": (
        "HFClientSGLang",
        "HFClientTGI",
        "HFClientVLLM",
    ),
    "endpoints": ("Endpoint",),
    "errors": (
        "APIStatusError",
        "AllEndpointsDown",
        "AuthenticationError",
        "BadRequestError",
        "CassetteMiss",
        "ConnectError",
        "ConnectTimeoutError",
        "ConstraintNotEnforced",
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
    "hooks": (
        "CallRecord",
        "Hook",
    ),
    "options": ("CallOptions",),
    "server": ("Server",),
    "stream": (
        "AsyncStream",
        "Stream",
    ),
    "transport.engine": (
        "AsyncEngineTransport",
        "EngineTransport",
    ),
    "transport.options": ("HTTPOptions",),
    "transport.pool": (
        "AsyncPoolTransport",
        "PoolTransport",
    ),
    "types": (
        "ChatChunk",
        "ChatCompletion",
        "Completion",
        "CompletionChunk",
        "Detokenized",
        "Embeddings",
        "Message",
        "ModelInfo",
        "ParsedChat",
        "Tokens",
        "ToolCall",
        "Usage",
    ),
    "wire": (
        "ServerInfo",
        "Timeout",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "APIStatusError",
    "AllEndpointsDown",
    "AsyncClient",
    "AsyncEngineTransport",
    "AsyncPoolTransport",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "BatchResult",
    "Breaker",
    "Cache",
    "CacheStats",
    "CallOptions",
    "CallRecord",
    "Cassette",
    "CassetteMiss",
    "ChatChunk",
    "ChatCompletion",
    "Client",
    "Completion",
    "CompletionChunk",
    "ConnectError",
    "ConnectTimeoutError",
    "ConstraintNotEnforced",
    "ContextLengthError",
    "Detokenized",
    "Embeddings",
    "Endpoint",
    "EndpointStatus",
    "EndpointTable",
    "EngineTransport",
    "HFClientSGLang",
    "HFClientTGI",
    "HFClientVLLM",
    "HTTPOptions",
    "Hook",
    "IncompleteStreamError",
    "InvalidParameterError",
    "InvalidResponseError",
    "Message",
    "MissingExtraError",
    "ModelInfo",
    "MyLLMError",
    "NotFoundError",
    "OverloadedError",
    "ParsedChat",
    "PoolTransport",
    "RateLimitError",
    "RequestTimeoutError",
    "Server",
    "ServerError",
    "ServerInfo",
    "ServerStartError",
    "Stream",
    "Timeout",
    "Tokens",
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
