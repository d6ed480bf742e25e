"""Start a server process and end it: socket, model, HTTP, signals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import stat
import sys
import threading
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig
from ..errors import ModelLoadError
from .lifetime import exit_despite_threads

if TYPE_CHECKING:
    from ..async_engine import AsyncEngine
    from .settings import ServerSettings

_BACKLOG = 2048
# For the engine's current step, and for what worker threads are at.
_END_SECONDS = 3.0
_NEEDED = ("torch", "transformers", "fastapi", "uvicorn", "orjson")


class StartError(Exception):
    """The server cannot start, by a mistake that the user can mend; the message says how.

    Attributes:
        exit_code: 2 for wrong options, 1 for everything else.
    """

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Say where to listen.

    Attributes:
        host: address or name of an interface.
        port: 0 takes a free one.
        fd: an inherited socket, bound and not yet listening, that is used in place of host and port.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    fd: int | None = None


def check_installed() -> None:
    """Raise StartError when a library of the engine extra is missing; imports none of them."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise StartError(
            f"`serve` needs the engine extra, and {', '.join(missing)} is not installed: "
            "pip install 'myllm-suite[engine]'"
        )


def bind(listen: Listen) -> socket.socket:
    """Return the bound socket.

    It does not listen yet: a client that comes before the model is loaded is refused at once and can try
    again, rather than wait in a queue that nobody serves.

    Raises:
        StartError: the port is taken, the address is not this machine's, or `fd` is no socket.
    """
    if listen.fd is not None:
        return _inherited(listen.fd)
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise StartError(
            f"`--host` {listen.host!r} is not a name or address that can be resolved: {error.strerror}",
            exit_code=2,
        ) from error
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise _bind_error(listen, error) from error
    return sock


def _inherited(fd: int) -> socket.socket:
    try:
        is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError as error:
        raise StartError(f"`--fd` {fd} is not an open file descriptor", exit_code=2) from error
    if not is_socket:
        raise StartError(f"`--fd` {fd} is not a socket", exit_code=2)
    return socket.socket(fileno=fd)


def _bind_error(listen: Listen, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return StartError(
            f"Port {listen.port} on {listen.host} is in use: stop what listens there, or choose another with "
            "`--port` (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return StartError(f"Port {listen.port} needs privileges that this user lacks; choose one above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return StartError(f"`--host` {listen.host} is not an address of this machine", exit_code=2)
    return StartError(f"Cannot bind to {listen.host}:{listen.port}: {error.strerror}")


def run(
    config: EngineConfig, settings: ServerSettings, listen: Listen, *, log_level: str, shutdown_timeout: float
) -> None:
    """Load the model and serve it until SIGINT or SIGTERM.

    Ends the process itself, with exit code 0, when threads hang at the end.

    Raises:
        StartError: the port or the model is not to be had.
    """
    sock = bind(listen)
    sys.stderr.write(f"Loading {config.model} …\n")
    sys.stderr.flush()
    engine = _load(config)
    # Closing waits for the engine's current step; nobody waits for this thread longer than for others.
    closing = threading.Thread(target=engine.close, name="close-engine")
    try:
        _serve(engine, settings, sock, listen, closing, log_level, shutdown_timeout)
    finally:
        _start_once(closing)
    exit_despite_threads(_END_SECONDS)


def _start_once(thread: threading.Thread) -> None:
    if thread.ident is None:
        thread.start()


def _load(config: EngineConfig) -> AsyncEngine:
    # transformers draws a bar for each step of loading. tqdm reads this when it is imported, in this process
    # by nobody before; the bars of downloads have a switch of their own and stay.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ..async_engine import AsyncEngine

    try:
        return AsyncEngine(config)
    except ModelLoadError as error:
        raise StartError(str(error)) from error


def _serve(
    engine: AsyncEngine,
    settings: ServerSettings,
    sock: socket.socket,
    listen: Listen,
    closing: threading.Thread,
    log_level: str,
    shutdown_timeout: float,
) -> None:
    from .app import build_app

    app = build_app(engine, settings)
    server = _make_server(app, closing, log_level=log_level, shutdown_timeout=shutdown_timeout)

    def stop(*_: Any) -> None:
        server.should_exit = True

    # uvicorn puts its own handlers in place while it serves and raises the signal again afterwards, for the
    # handlers it found: with these the process then goes on to its end, with exit code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        sock.listen(_BACKLOG)
    except OSError as error:  # Somebody else began to listen while the model was loading.
        raise _bind_error(listen, error) from error
    sys.stderr.write(banner(engine, settings, sock, app.version))
    sys.stderr.flush()
    try:
        server.run(sockets=[sock])
    finally:
        app.state.context.close()


def _make_server(app: Any, closing: threading.Thread, *, log_level: str, shutdown_timeout: float) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        # Once the grace is over the engine is closed: unfinished requests then fail, and their clients are
        # told so; uvicorn alone would cut the connections.
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            timer = asyncio.get_running_loop().call_later(shutdown_timeout, _start_once, closing)
            try:
                await super().shutdown(sockets)
            finally:
                timer.cancel()

    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=log_level,
            access_log=log_level in ("debug", "info"),
            lifespan="off",
            server_header=False,
            headers=[("server", f"myllm/{app.version}")],
            # Above the 60 s for which clients and proxies keep idle connections: whoever closes first races
            # with a request.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(shutdown_timeout) + 3,
        )
    )


def banner(engine: AsyncEngine, settings: ServerSettings, sock: socket.socket, version: str) -> str:
    """Return what a user wants to know when the server is ready."""
    names = ", ".join(settings.served_model_names or (engine.config.model,))
    stats = engine.stats()
    url = _url(sock)
    page = engine.config.page_size
    for_people = f"  Page      {url}/ui\n" if settings.enable_ui else ""
    key = ", with an API key" if settings.api_keys else ""
    warning = ""
    if not settings.api_keys and _is_open(sock):
        warning = (
            "Anyone on the network may use it: `--api-key` asks for a key, `--host 127.0.0.1` closes it.\n"
        )
    return (
        f"myllm {version} is ready: {engine.model_name}, served as {names}{key}\n"
        f"  device    {engine.device}, {engine.dtype}\n"
        f"  context   {engine.max_model_len} tokens; {engine.config.max_num_seqs} sequences at once\n"
        f"  KV cache  {stats.kv_pages_total} pages of {page} tokens ({stats.kv_pages_total * page} tokens)\n"
        f"  OpenAI    {url}/v1\n"
        f"  TGI       {url}/generate\n"
        f"  API       {url}/docs\n"
        f"{for_people}"
        f"{warning}"
        f"Stop it with Ctrl-C or `kill {os.getpid()}`.\n"
    )


def _is_open(sock: socket.socket) -> bool:
    """Tell whether the socket can be reached from other machines."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def _url(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
