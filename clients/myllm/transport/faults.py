"""httpx's exceptions, and the clock's, turned into ours with what to do about them."""

from __future__ import annotations

import ssl
import time
from typing import Any

import httpx

from ..errors import ConnectError, ConnectTimeoutError, InvalidParameterError, MyLLMError, RequestTimeoutError
from ..wire import Send, Timeout


def least(*seconds: float | None) -> float | None:
    """Return the shortest of some limits; None is no limit."""
    return min((s for s in seconds if s is not None), default=None)


def deadline_of(timeout: Timeout) -> float | None:
    """Return the point on the monotonic clock at which a call that starts now must have ended."""
    return None if timeout.total is None else time.monotonic() + timeout.total


def deadline_error(action: Send) -> RequestTimeoutError:
    """Return the error for a call that has used up its total time."""
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
    if isinstance(exc, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        # Its words may hold a header's value, and so a key.
        return InvalidParameterError("The request cannot be sent: a header or the URL is malformed.")
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
            hint="It is busy or stuck, or the answer is long: set `max_tokens=`, stream it, or wait longer "
            "with `timeout=Timeout(read=…)`.",
            **context,
        )
    if isinstance(exc, httpx.PoolTimeout):
        return RequestTimeoutError(
            f"No free connection to {url} before the deadline.", phase="pool", **context
        )
    if isinstance(exc, httpx.ConnectError):
        return _connect_error(exc, action, context)
    error = ConnectError(
        f"The connection to {url} broke before the answer was complete: {_words(exc)}.",
        hint="Did the server stop or crash? Its log tells.",
        **context,
    )
    error.connected = True
    return error


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
