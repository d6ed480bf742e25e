"""Where httpx is touched: requests out, replies in, httpx's exceptions turned into ours.

The other place is `framework.py`, for frameworks that bring an API client of their own.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from ..endpoints import Endpoint
from ..errors import ConnectError, ConnectTimeoutError, InvalidParameterError, MyLLMError, RequestTimeoutError
from ..wire import Reply, Send, Timeout

# httpx caps a pool at 100 connections, which starves large batches (vllm#7241); the server's queue and the
# caller's own concurrency are the limits that are meant.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=128)


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPOptions:
    """How to reach the servers.

    Attributes:
        verify: False trusts any certificate; a path names a CA bundle (file or folder).
        cert: client certificate: a PEM file, or (certificate, key).
        proxy: URL of a proxy for all requests; without it the environment's proxies are used, never for
            servers on this machine.
        auth: (user, password) for HTTP basic authentication.
    """

    verify: bool | str = True
    cert: str | tuple[str, str] | None = None
    proxy: str | None = field(default=None, repr=False)
    auth: tuple[str, str] | None = field(default=None, repr=False)

    def client_arguments(self, endpoints: Sequence[Endpoint]) -> dict[str, Any]:
        """Return the arguments for `httpx.Client` or `httpx.AsyncClient`."""
        mounts: dict[str, None] = {}
        if self.proxy is None:
            # A proxy from the environment must not catch loopback (llama_index#13640, ollama#9141).
            for endpoint in endpoints:
                if endpoint.is_loopback:
                    mounts[
                        f"all://{'[' + endpoint.host + ']' if ':' in endpoint.host else endpoint.host}"
                    ] = None
        arguments: dict[str, Any] = {
            "verify": self._ssl(endpoints),
            "proxy": self.proxy,
            "auth": self.auth,
            "limits": _LIMITS,
            "follow_redirects": False,
        }
        if mounts:
            arguments["mounts"] = mounts
        return arguments

    def _ssl(self, endpoints: Sequence[Endpoint]) -> ssl.SSLContext | bool:
        if not any(endpoint.url.startswith("https:") for endpoint in endpoints):
            return False  # Nothing to verify; loading the system's certificates takes tens of milliseconds.
        try:
            if self.verify is False:
                context = ssl.create_default_context()
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif isinstance(self.verify, str):
                context = ssl.create_default_context()
                context.load_verify_locations(**_location(self.verify))
            else:
                context = httpx.create_ssl_context()
            if self.cert is not None:
                context.load_cert_chain(*((self.cert,) if isinstance(self.cert, str) else self.cert))
        except OSError as exc:
            raise InvalidParameterError(
                f"The certificates (`verify={self.verify!r}`, `cert={self.cert!r}`) cannot be loaded: {exc}.",
                param="verify",
            ) from exc
        return context


def _location(path: str) -> dict[str, str]:
    from pathlib import Path

    return {"capath": path} if Path(path).is_dir() else {"cafile": path}


class HTTPTransport:
    """Sends for the sync driver. Thread-safe; the connections are shared by all threads."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        options: HTTPOptions,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        arguments = options.client_arguments(endpoints)
        if transport is not None:
            arguments = {"transport": transport}
        self._client = httpx.Client(**arguments)

    def send(self, action: Send) -> Reply:
        """Send a request and read the reply; leave the body open if it is a stream below 400.

        Raises:
            ConnectError, ConnectTimeoutError, RequestTimeoutError: no reply.
            MyLLMError: the client was closed.
        """
        if self._client.is_closed:
            raise MyLLMError("This client is closed.", hint="Make a new one, or close it later.")
        deadline = _deadline(action.timeout)
        request = _build(self._client, action)
        with _translated(action):
            response = self._client.send(request, stream=True)
        if action.stream and response.status_code < 400:
            return Reply(
                status=response.status_code,
                headers=response.headers,
                stream=OpenBody(response, action, deadline),
            )
        with OpenBody(response, action, deadline) as body:
            content = b"".join(body)
        return Reply(status=response.status_code, headers=response.headers, body=content)

    def close(self) -> None:
        """Close the connections; nothing can be sent afterwards."""
        self._client.close()


class OpenBody:
    """A reply's body on its way: an iterator of byte strings, closed with the context."""

    def __init__(self, response: httpx.Response, action: Send, deadline: float | None) -> None:
        self._response = response
        self._action = action
        self._deadline = deadline

    def __iter__(self) -> Iterator[bytes]:
        with _translated(self._action):
            for data in self._response.iter_bytes():
                yield data
                if self._deadline is not None and time.monotonic() > self._deadline:
                    raise _deadline_error(self._action)

    def __enter__(self) -> OpenBody:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection unless the body was read to its end; the server then aborts the request."""
        self._response.close()


class AsyncHTTPTransport:
    """Sends for the async driver; each event loop has connections of its own."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        options: HTTPOptions,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._arguments = (
            options.client_arguments(endpoints) if transport is None else {"transport": transport}
        )
        # Connections belong to the loop they were made in; using them in another one fails or hangs.
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = (
            weakref.WeakKeyDictionary()
        )

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = httpx.AsyncClient(**self._arguments)
        return client

    async def send(self, action: Send) -> Reply:
        """See `HTTPTransport.send`."""
        client = self._client()
        deadline = _deadline(action.timeout)
        request = _build(client, action)
        async with _async_translated(action, deadline):
            response = await client.send(request, stream=True)
        body = AsyncOpenBody(response, action, deadline)
        if action.stream and response.status_code < 400:
            return Reply(status=response.status_code, headers=response.headers, stream=body)
        async with body:
            content = b"".join([data async for data in body])
        return Reply(status=response.status_code, headers=response.headers, body=content)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()


class AsyncOpenBody:
    """`OpenBody` for the async driver."""

    def __init__(self, response: httpx.Response, action: Send, deadline: float | None) -> None:
        self._response = response
        self._action = action
        self._deadline = deadline

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = self._response.aiter_bytes().__aiter__()
        while True:
            async with _async_translated(self._action, self._deadline):
                try:
                    data = await anext(chunks)
                except StopAsyncIteration:
                    return
            yield data

    async def __aenter__(self) -> AsyncOpenBody:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `OpenBody.close`."""
        await self._response.aclose()


def _build(client: httpx.Client | httpx.AsyncClient, action: Send) -> httpx.Request:
    timeout = action.timeout
    content = None
    headers: Mapping[str, str] = action.headers
    if action.request.json is not None:
        content = json.dumps(action.request.json, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {**headers, "Content-Type": "application/json"}
    return client.build_request(
        action.request.method,
        action.endpoint.url + action.request.path,
        content=content,
        headers=headers,
        timeout=httpx.Timeout(
            connect=least(timeout.connect, timeout.total),
            read=least(timeout.read, timeout.total),
            write=least(timeout.read, timeout.total),
            pool=timeout.total,
        ),
    )


def least(*seconds: float | None) -> float | None:
    """Return the shortest of some limits; None is no limit."""
    return min((s for s in seconds if s is not None), default=None)


def _deadline(timeout: Timeout) -> float | None:
    return None if timeout.total is None else time.monotonic() + timeout.total


@contextmanager
def _translated(action: Send) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        raise error_from_httpx(exc, action) from exc


@asynccontextmanager
async def _async_translated(action: Send, deadline: float | None) -> AsyncIterator[None]:
    remaining = None if deadline is None else deadline - time.monotonic()
    try:
        async with asyncio.timeout(remaining):
            yield
    except httpx.HTTPError as exc:
        raise error_from_httpx(exc, action) from exc
    except TimeoutError as exc:
        if isinstance(exc, MyLLMError):
            raise
        raise _deadline_error(action) from exc


def _deadline_error(action: Send) -> RequestTimeoutError:
    return RequestTimeoutError(
        f"{action.endpoint.url} did not finish its answer within the deadline.",
        phase="total",
        endpoint=action.endpoint.url,
        request_id=action.headers.get("X-Request-Id"),
        hint="Give the call more time with `timeout=Timeout(total=…)`.",
    )


def error_from_httpx(exc: httpx.HTTPError, action: Send) -> MyLLMError:
    """Return our error for one of httpx's, with what to do."""
    url = action.endpoint.url
    context: dict[str, Any] = {"endpoint": url, "request_id": action.headers.get("X-Request-Id")}
    if isinstance(exc, httpx.ConnectTimeout):
        limit = least(action.timeout.connect, action.timeout.total)
        return ConnectTimeoutError(
            f"{url} did not accept a connection within {limit:g} s.",
            hint="Is the host right and reachable? `timeout=Timeout(connect=…)` allows more time.",
            **context,
        )
    if isinstance(exc, httpx.ReadTimeout | httpx.WriteTimeout):
        limit = least(action.timeout.read, action.timeout.total)
        return RequestTimeoutError(
            f"{url} was silent for {limit:g} s.",
            phase="read" if isinstance(exc, httpx.ReadTimeout) else "write",
            hint="It is busy or stuck, or the answer takes longer: `timeout=Timeout(read=…)` waits longer.",
            **context,
        )
    if isinstance(exc, httpx.PoolTimeout):
        return RequestTimeoutError(
            f"No free connection to {url} before the deadline.", phase="pool", **context
        )
    if isinstance(exc, httpx.ConnectError):
        return _connect_error(exc, action, context)
    return ConnectError(
        f"The connection to {url} broke before the answer was complete: {_words(exc)}.",
        hint="Did the server stop or crash? Its log tells.",
        **context,
    )


def _connect_error(exc: httpx.ConnectError, action: Send, context: dict[str, Any]) -> ConnectError:
    url, words = action.endpoint.url, _words(exc)
    # httpx keeps the operating system's error only as text, or deep in the chain of causes.
    cause = _os_error(exc)
    port = url.rsplit(":", 1)[-1].split("/")[0]
    start = f" --port {port}" if port.isdigit() else ""
    if isinstance(cause, ConnectionRefusedError) or "refused" in words.lower() or "attempts failed" in words:
        return ConnectError(
            f"No server answers at {url}: the connection was refused.",
            hint=f"Start one (`myllm serve{start}`), or check `port` and `url`.",
            **context,
        )
    if "certificate" in words.lower() or isinstance(cause, ssl.SSLError):
        return ConnectError(
            f"No secure connection to {url}: {words}.",
            hint="`verify=` takes a CA bundle; a server without TLS wants `http://`.",
            **context,
        )
    if "name" in words.lower() and ("resol" in words.lower() or "known" in words.lower()):
        return ConnectError(f"The host of {url} is not known: {words}.", hint="Check `url`.", **context)
    return ConnectError(f"No connection to {url}: {words}.", hint="Check `port` and `url`.", **context)


def _os_error(exc: BaseException) -> BaseException | None:
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _words(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
