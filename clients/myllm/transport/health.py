"""Active health checks: a thread that looks at each server's `/health` now and then."""

from __future__ import annotations

import os
import threading
import weakref

from .. import tap
from .._version import __version__
from ..balancer import Balancer
from ..endpoints import Endpoint
from ..errors import ConnectError, MyLLMError, OverloadedError, RequestTimeoutError
from ..wire import Send, Timeout, WireRequest
from .http import HTTPTransport
from .options import HTTPOptions

PROBE_TIMEOUT = 2.0
"""Seconds that a server gets to answer a probe; less when the interval is shorter."""


class HealthProber:
    """Probes the servers of one balancer from a daemon thread, from its client's first call until its end.

    A server is down when it refuses, is silent, or says 503 (loading, draining); any other answer is life:
    not every server has `/health`, and a key may be wanted.
    """

    def __init__(self, balancer: Balancer, interval: float | None, options: HTTPOptions) -> None:
        self._balancer = balancer
        self._interval = interval
        self._options = options
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._stopped = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin, if there is anything to do and it has not begun."""
        if self._interval is None or (self._thread is not None and self._pid == os.getpid()):
            return
        with self._lock:
            if self._thread is None or self._pid != os.getpid():  # a fork's child has no threads
                self._pid = os.getpid()
                self._stopped = threading.Event()
                # The thread must not keep a client alive that nobody holds any more.
                balancer, stopped = weakref.ref(self._balancer), self._stopped
                weakref.finalize(self, stopped.set)
                self._thread = threading.Thread(
                    target=_probe,
                    args=(balancer, stopped, self._interval, self._options),
                    name="myllm-health",
                    daemon=True,
                )
                self._thread.start()

    def stop(self) -> None:
        """End; a later `start` begins again."""
        self._stopped.set()
        self._thread = None


def _probe(
    balancer: weakref.ref[Balancer], stopped: threading.Event, interval: float, options: HTTPOptions
) -> None:
    limit = min(PROBE_TIMEOUT, interval)
    timeout = Timeout(connect=limit, first_byte=limit, idle=limit)
    transport = HTTPTransport(options)
    try:
        while not stopped.wait(interval):
            if (servers := balancer()) is None:
                return
            # A cassette holds what the user's code asks for; its servers need not run.
            for endpoint in servers.endpoints if tap.active is None else ():
                servers.probed(endpoint, _look(transport, endpoint, timeout))
            del servers
    finally:
        transport.close()


def _look(transport: HTTPTransport, endpoint: Endpoint, timeout: Timeout) -> MyLLMError | None:
    """Return what is wrong with a server, or None."""
    headers = {"User-Agent": f"myllm/{__version__}"}
    if endpoint.api_key is not None:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    request = WireRequest(method="GET", path="/health")
    send = Send(request=request, endpoint=endpoint, headers=headers, timeout=timeout)
    try:
        reply = transport.send(send)
    except (ConnectError, RequestTimeoutError) as exc:
        return exc
    if reply.status == 503:
        return OverloadedError(
            f"{endpoint.url}/health says 503: not ready.", endpoint=endpoint.url, status=503
        )
    return None
