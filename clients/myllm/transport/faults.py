"""httpcore's exceptions turned into ours, with what to do about them."""

from __future__ import annotations

import ssl
import time
from typing import Any

import httpcore

from ..errors import (
    ConnectError,
    ConnectTimeoutError,
    InvalidParameterError,
    MyLLMError,
    RequestTimeoutError,
    TimeoutPhase,
)
from ..wire import Send
from .network import Waits


def deadline_error(action: Send) -> RequestTimeoutError:
    """Return the error for a call that has used up its total time."""
    return RequestTimeoutError(
        f"{action.endpoint.url} did not finish its answer within the deadline.",
        phase="total",
        endpoint=action.endpoint.url,
        request_id=action.request_id,
        hint="Give the call more time with `timeout=Timeout(total=…)`.",
    )


def error_from_httpcore(exc: Exception, action: Send, waits: Waits | None = None) -> MyLLMError:
    """Return our error for one of httpcore's, with what to do.

    Args:
        exc: what the sending or the reading raised.
        action: what was sent.
        waits: the exchange's limits, to tell which of them ran out.
    """
    url = action.endpoint.url
    context: dict[str, Any] = {"endpoint": url, "request_id": action.request_id}
    if isinstance(exc, httpcore.ConnectTimeout):
        limits = [s for s in (action.timeout.connect, action.timeout.total) if s is not None]
        within = f" within {min(limits):g} s" if limits else ""  # the operating system has limits of its own
        return ConnectTimeoutError(
            f"{url} did not accept a connection{within}.",
            hint="Is the host right and reachable? `timeout=Timeout(connect=…)` allows more time.",
            **context,
        )
    timed_out = isinstance(exc, httpcore.TimeoutException)
    if timed_out and action.deadline is not None and time.monotonic() >= action.deadline - 0.001:
        return deadline_error(action)
    if isinstance(exc, httpcore.LocalProtocolError | httpcore.UnsupportedProtocol):
        # Its words may hold a header's value, and so a key.
        return InvalidParameterError("The request cannot be sent: a header or the URL is malformed.")
    if isinstance(exc, httpcore.PoolTimeout):
        return RequestTimeoutError(
            f"No free place for a request to {url} before the deadline.",
            phase="pool",
            hint="`max_concurrency=` says how many the client has.",
            **context,
        )
    if timed_out:
        began = waits is not None and waits.began
        limit = action.timeout.idle if began else action.timeout.first_byte
        phase: TimeoutPhase = "write" if isinstance(exc, httpcore.WriteTimeout) else "first_byte"
        return RequestTimeoutError(
            f"{url} was silent for {limit:g} s"
            + (" in the middle of its answer." if began else " and gave no answer."),
            phase="idle" if began else phase,
            hint="It is busy or stuck, or the answer is long: set `max_tokens=`, stream it, or wait longer "
            f"with `timeout=Timeout({'idle' if began else 'first_byte'}=…)`.",
            **context,
        )
    if isinstance(exc, httpcore.ProxyError):
        return ConnectError(f"The proxy did not connect to {url}: {_words(exc)}.", **context)
    if isinstance(exc, httpcore.ConnectError):
        return _connect_error(exc, action, context)
    error = ConnectError(
        f"The connection to {url} broke before the answer was complete: {_words(exc)}.",
        hint="Did the server stop or crash? Its log tells.",
        **context,
    )
    error.connected = True
    return error


def _connect_error(exc: httpcore.ConnectError, action: Send, context: dict[str, Any]) -> ConnectError:
    url, words = action.endpoint.url, _words(exc)
    if action.endpoint.dial is not None:
        return ConnectError(f"No connection to {url}: {words}.", **context)
    # httpcore keeps the operating system's error only as text, or deep in the chain of causes.
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
    return str(exc).rstrip(".") or type(exc).__name__
