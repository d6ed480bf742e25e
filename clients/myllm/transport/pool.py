"""The balancer as an `httpx` transport: several servers behind any SDK that takes an httpx client.

    http = httpx.Client(transport=PoolTransport(["http://gpu1:8000", "http://gpu2:8000"]))
    openai.OpenAI(base_url="http://pool/v1", api_key="unused", http_client=http)

The host of the SDK's own base URL does not matter: each request goes to one of the servers, and on to the
next when that one cannot be reached, breaks off before its answer, or says 429, 502, 503 or 504. Whether a
request that failed everywhere is tried again is left to the SDK: it is the one retry owner.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from typing import Any

import httpx

from .._version import __version__
from ..balancer import Balancer, Breaker, EndpointStatus, Lease
from ..endpoints import Endpoint, UrlSpec, resolve_endpoints
from ..errors import (
    ConnectError,
    ConnectTimeoutError,
    InvalidParameterError,
    MyLLMError,
    OverloadedError,
    RequestTimeoutError,
)
from ..policies import Policy, get_policy
from ..wire import Reply, Send, Timeout, WireRequest, new_request_id
from .health import HealthProber
from .http import AsyncHTTPTransport, HTTPTransport
from .options import HTTPOptions

_ELSEWHERE = frozenset({429, 502, 503, 504})
_HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})


class _Pool:
    """What both transports share: the servers, and which of them a request goes to."""

    def __init__(
        self,
        endpoints: UrlSpec | Sequence[Endpoint],
        policy: str | Policy = "least_in_flight",
        *,
        api_key: str | None = None,
        breaker: Breaker | None = Breaker(),  # noqa: B008 - frozen
        health_interval: float | None = None,
        max_concurrency: int | None = None,
        timeout: Timeout | None = None,
        http: HTTPOptions | None = None,
    ) -> None:
        """Make a transport over one or more servers.

        Args:
            endpoints: URLs, with or without `/v1`, or `Endpoint`s with keys and weights of their own.
            policy: see `Client`; "affinity" goes by the header `X-Session-Id`, else by the body's beginning.
            api_key: the servers' key, in place of what the SDK sends. Default: `MYLLM_API_KEY`; without one
                the SDK's own goes through.
            breaker: when a failing server is left alone, and for how long; None never leaves one alone.
            health_interval: seconds between looks at each server's `/health`; None: none.
            max_concurrency: most requests in flight at once.
            timeout: upper limits beside the SDK's own; by default 5 s for a connection, and no more.
            http: certificates, proxy and basic authentication.
        """
        if isinstance(endpoints, str):
            endpoints = [endpoints]
        given = [
            one if isinstance(one, Endpoint) else resolve_endpoints(one, api_key)[0] for one in endpoints
        ]
        if not given:
            raise InvalidParameterError(
                "`endpoints` is an empty list: name at least one server.", param="endpoints"
            )
        self.balancer = Balancer(tuple(given), get_policy(policy), breaker)
        self.timeout = timeout or Timeout(first_byte=None, idle=None)
        self.options = http or HTTPOptions()
        self.max_concurrency = max_concurrency
        self.prober = HealthProber(self.balancer, health_interval, self.options)

    def endpoints(self) -> list[EndpointStatus]:
        """Return how each server is doing."""
        return self.balancer.status()

    def tries(self, request: httpx.Request, content: bytes) -> Generator[Send, Reply, tuple[Lease, Reply]]:
        """Yield what is to be sent, until a reply is one to hand on.

        Is sent the reply, or thrown the error.
        """
        self.prober.start()
        tried: list[Endpoint] = []
        key = request.headers.get("x-session-id") or repr(content[:1024])
        while True:
            lease = self.balancer.take(tried, key if self.balancer.keyed else None)
            tried.append(lease.endpoint)
            more = len(tried) < len(self.balancer.endpoints)
            try:
                reply = yield self._send(lease.endpoint, request, content)
            except MyLLMError as exc:
                lease.ended(exc)
                if more and isinstance(exc, ConnectError):
                    continue
                raise
            except BaseException:
                lease.released()
                raise
            if reply.status >= 500:
                url = lease.endpoint.url
                lease.ended(OverloadedError(f"{url} says {reply.status}.", endpoint=url, status=reply.status))
            if not (more and reply.status in _ELSEWHERE):
                if reply.stream is not None:
                    lease.began()
                return lease, reply
            lease.succeeded()

    def _send(self, endpoint: Endpoint, request: httpx.Request, content: bytes) -> Send:
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        headers.setdefault("x-request-id", new_request_id())
        headers.setdefault("user-agent", f"myllm/{__version__}")
        headers["accept-encoding"] = "identity"
        if endpoint.api_key is not None:
            headers["authorization"] = f"Bearer {endpoint.api_key}"
        path = request.url.raw_path.decode("ascii")
        for known in self.balancer.endpoints:
            if str(request.url).startswith(f"{known.url}/"):
                path = str(request.url).removeprefix(known.url)
                break
        phases = request.extensions.get("timeout", {})
        read = _least(self.timeout.first_byte, phases.get("read"))
        return Send(
            request=WireRequest(
                method=request.method,
                path=path,
                content=content if content or request.method in ("POST", "PUT", "PATCH") else None,
            ),
            endpoint=endpoint,
            headers=headers,
            timeout=Timeout(
                connect=_least(self.timeout.connect, phases.get("connect")),
                first_byte=read,
                idle=_least(self.timeout.idle, phases.get("read")),
            ),
            stream=True,
        )


class PoolTransport(_Pool, httpx.BaseTransport):
    """Several servers as one, for `httpx.Client(transport=…)`. Thread-safe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport = HTTPTransport(self.options, self.max_concurrency)

    __init__.__doc__ = _Pool.__init__.__doc__

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to one of the servers; what fails raises httpx's exceptions."""
        tries = self.tries(request, request.read())
        try:
            action = next(tries)
            while True:
                try:
                    reply = self._transport.send(action)
                except MyLLMError as exc:
                    action = tries.throw(exc)
                else:
                    action = tries.send(reply)
        except StopIteration as stop:
            lease, reply = stop.value
        except MyLLMError as exc:
            raise _httpx_error(exc, request) from exc
        finally:
            tries.close()
        if reply.stream is None:
            lease.succeeded()
            return httpx.Response(reply.status, headers=_headers(reply), content=reply.body)
        return httpx.Response(
            reply.status, headers=_headers(reply), stream=_Body(reply.stream, lease, request)
        )

    def close(self) -> None:
        """Close the connections."""
        self.prober.stop()
        self._transport.close()


class AsyncPoolTransport(_Pool, httpx.AsyncBaseTransport):
    """Several servers as one, for `httpx.AsyncClient(transport=…)`. Usable from several event loops."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport = AsyncHTTPTransport(self.options, self.max_concurrency)

    __init__.__doc__ = _Pool.__init__.__doc__

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `PoolTransport.handle_request`."""
        tries = self.tries(request, await request.aread())
        try:
            action = next(tries)
            while True:
                try:
                    reply = await self._transport.send(action)
                except MyLLMError as exc:
                    action = tries.throw(exc)
                else:
                    action = tries.send(reply)
        except StopIteration as stop:
            lease, reply = stop.value
        except MyLLMError as exc:
            raise _httpx_error(exc, request) from exc
        finally:
            tries.close()
        if reply.stream is None:
            lease.succeeded()
            return httpx.Response(reply.status, headers=_headers(reply), content=reply.body)
        return httpx.Response(
            reply.status, headers=_headers(reply), stream=_AsyncBody(reply.stream, lease, request)
        )

    async def aclose(self) -> None:
        """Close the running loop's connections."""
        self.prober.stop()
        await self._transport.close()


class _Body(httpx.SyncByteStream):
    """An answer on its way."""

    def __init__(self, body: Any, lease: Lease, request: httpx.Request) -> None:
        self._body = body
        self._lease = lease
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._body
        except MyLLMError as exc:
            self._lease.ended(exc)
            raise _httpx_error(exc, self._request) from exc
        self._lease.succeeded()

    def close(self) -> None:
        self._body.close()
        self._lease.released()


class _AsyncBody(httpx.AsyncByteStream):
    """`_Body` for asyncio."""

    def __init__(self, body: Any, lease: Lease, request: httpx.Request) -> None:
        self._body = body
        self._lease = lease
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._body:
                yield data
        except MyLLMError as exc:
            self._lease.ended(exc)
            raise _httpx_error(exc, self._request) from exc
        self._lease.succeeded()

    async def aclose(self) -> None:
        await self._body.close()
        self._lease.released()


def _headers(reply: Reply) -> list[tuple[str, str]]:
    # httpx frames the answer itself.
    return [
        (name, line)
        for name, value in reply.headers.items()
        if name not in _HOP_BY_HOP
        for line in value.split("\n")
    ]


def _httpx_error(error: MyLLMError, request: httpx.Request) -> httpx.TransportError:
    """Return httpx's exception for ours, with our words."""
    cls: type[httpx.TransportError] = httpx.RemoteProtocolError
    if isinstance(error, ConnectTimeoutError):
        cls = httpx.ConnectTimeout
    elif isinstance(error, RequestTimeoutError):
        cls = {"pool": httpx.PoolTimeout, "write": httpx.WriteTimeout}.get(error.phase, httpx.ReadTimeout)
    elif isinstance(error, ConnectError):
        cls = httpx.ReadError if error.connected else httpx.ConnectError
    return cls(str(error), request=request)


def _least(*seconds: float | None) -> float | None:
    return min((s for s in seconds if s is not None), default=None)
