"""Serve an engine to clients in the same process: the server as it is, over socket pairs in place of a port.

What `Client(engine=…)` finds through the entry point `myllm.engines`, which names `dial`. Each connection is
a pair of connected sockets that nobody else can reach; one end is the client's, the other one is served by
uvicorn's protocol in an event loop of its own. So every route, limit, error and disconnect is what it is over
a port.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from ..async_engine import AsyncEngine
from ..config import EngineConfig
from ..llm import LLM
from .app import build_app
from .settings import ServerSettings

_GRACE = 2.0  # seconds that answers on their way get when the engine is closed; all of them are failing then

_hosts: weakref.WeakKeyDictionary[AsyncEngine, weakref.ref[Host]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class Dial:
    """Serve the engines of this process, and start them."""

    def __call__(self, engine: object) -> Callable[[], socket.socket] | None:
        """Return what opens connections to an engine; None when the object is none.

        The engine is served while anyone holds what is returned, and until the engine is closed.

        Args:
            engine: an `AsyncEngine`, or an `LLM`.
        """
        if isinstance(engine, LLM):
            engine = engine.engine
        if not isinstance(engine, AsyncEngine):
            return None
        with _lock:
            known = _hosts.get(engine)
            host = None if known is None else known()
            if host is None:
                host = Host(engine)
                _hosts[engine] = weakref.ref(host)
        return host.connect

    def start(self, model: str) -> AsyncEngine:
        """Load a model and run its engine, until the process ends.

        Raises:
            ModelLoadError, ValueError: the model cannot be loaded; the message says why and what to do.
        """
        return AsyncEngine(EngineConfig(model=model))


dial = Dial()


class Host:
    """Serve one engine from a thread, until the engine is closed or nobody holds the host any more."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._serving = _Serving(engine)
        # Without waiting: whoever happens to collect this may hold any lock.
        weakref.finalize(self, self._serving.stop)
        engine.dependents.add(self._serving)

    def connect(self) -> socket.socket:
        """Return a new connection to the server.

        Raises:
            ConnectionError: the engine is closed, or in the process that this one was forked from.
        """
        if os.getpid() != self._serving.pid:
            raise ConnectionError(f"the engine runs in process {self._serving.pid}, of which this is a fork")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            self._serving.take(theirs)
        except ConnectionError:
            ours.close()
            theirs.close()
            raise
        return ours

    # Frameworks deep-copy what holds a client: a copy reaches the same engine.
    def __deepcopy__(self, memo: dict[int, Any]) -> Host:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("an engine lives in its process: a client of one cannot be pickled")


class _Serving:
    """The thread, its event loop and the connections."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.pid = os.getpid()
        self._app = build_app(engine, ServerSettings())
        self._config = uvicorn.Config(
            self._app,
            lifespan="off",
            ws="none",
            log_config=None,
            server_header=False,
            headers=[("server", f"myllm/{self._app.version}")],
            timeout_keep_alive=75,
        )
        self._config.load()
        self._state = ServerState()
        self._state.default_headers = self._config.encoded_headers
        self._stopped = False
        self._accepting: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="myllm-server", daemon=True)
        self._thread.start()

    def take(self, connection: socket.socket) -> None:
        """Serve a connection; from any thread.

        Raises:
            ConnectionError: it has stopped.
        """
        try:
            if self._stopped:
                raise ConnectionError("the engine is closed")
            self._loop.call_soon_threadsafe(self._accept, connection)
        except RuntimeError:  # the loop was closed this very moment
            raise ConnectionError("the engine is closed") from None

    def _accept(self, connection: socket.socket) -> None:
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., Any] = self._config.http_protocol_class
        protocol = make(config=self._config, server_state=self._state, app_state={}, _loop=self._loop)
        protocol.access_log = False  # these are calls inside of a program, not visits
        return protocol

    def stop(self) -> None:
        """Let the thread end once the answers on their way have; does not wait for it."""
        if self._stopped or os.getpid() != self.pid:
            return
        self._stopped = True
        self._loop.call_soon_threadsafe(self._loop.stop)

    def close(self) -> None:
        """Stop, and wait for the thread; called when the engine has been closed."""
        self.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                self._loop.run_forever()
                runner.run(self._finish())
        finally:
            self._app.state.context.close()

    async def _finish(self) -> None:
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=_GRACE)
