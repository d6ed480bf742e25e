"""An engine in this process under any SDK that takes an httpx client; no port, no network.

    http = httpx.Client(transport=EngineTransport(engine))
    openai.OpenAI(base_url="http://engine/v1", api_key="unused", http_client=http)

The host of the SDK's base URL does not matter.
"""

from __future__ import annotations

from typing import Any

from ..engines import engine_endpoint
from ..wire import Timeout
from .pool import AsyncPoolTransport, PoolTransport


class EngineTransport(PoolTransport):
    """An engine in this process as a server, for `httpx.Client(transport=…)`. Thread-safe."""

    def __init__(
        self, engine: Any, *, max_concurrency: int | None = None, timeout: Timeout | None = None
    ) -> None:
        """Make a transport to an engine; closing it leaves the engine as it is.

        Args:
            engine: see `Client`.
            max_concurrency: most requests in flight at once.
            timeout: upper limits beside the SDK's own; by default none.

        Raises:
            MissingExtraError, InvalidParameterError: see `engines.engine_endpoint`.
        """
        super().__init__([engine_endpoint(engine)], max_concurrency=max_concurrency, timeout=timeout)


class AsyncEngineTransport(AsyncPoolTransport):
    """`EngineTransport` for `httpx.AsyncClient(transport=…)`. Usable from several event loops."""

    def __init__(
        self, engine: Any, *, max_concurrency: int | None = None, timeout: Timeout | None = None
    ) -> None:
        super().__init__([engine_endpoint(engine)], max_concurrency=max_concurrency, timeout=timeout)

    __init__.__doc__ = EngineTransport.__init__.__doc__
