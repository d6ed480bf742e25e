"""Start a server process and end it: socket, model, HTTP, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import EngineConfig
from ..errors import ModelLoadError
from .lifetime import exit_despite_threads
from .listen import Listen, StartError, bind, bind_error, is_open, url
from .logs import tell

if TYPE_CHECKING:
    from ..async_engine import AsyncEngine
    from .settings import ServerSettings

_BACKLOG = 2048
# For the engine's current step, and for what worker threads are at.
_END_SECONDS = 3.0
_DRAIN_TICK = 0.05  # seconds between two looks at whether requests still run
_HASTE = 1.0  # seconds in which clients are told that their requests are ended by a second Ctrl-C
_NEEDED = ("torch", "transformers", "fastapi", "uvicorn", "orjson", "prometheus_client")
_TRACING = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def check_installed(*, tracing: bool = False) -> None:
    """Raise StartError when a library of the engine extra is missing; imports none of them.

    With `tracing`, those of the extra `otel` are needed, too.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise StartError(
            f"`serve` needs the engine extra, and {', '.join(missing)} is not installed: "
            "pip install 'myllm-suite[engine]'"
        )
    if tracing and not all(map(_is_there, _TRACING)):
        raise StartError(
            "`--otlp-traces-endpoint` needs OpenTelemetry: pip install 'myllm-suite[engine,otel]'"
        )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # not even the package that it would be in
        return False


def run(
    config: EngineConfig,
    settings: ServerSettings,
    listen: Listen,
    *,
    shutdown_timeout: float,
    log_level: str = "warning",
    access_log: bool = True,
) -> int:
    """Load the model and serve it until SIGINT or SIGTERM.

    Return the exit code: 0, or 1 when the engine died meanwhile. Ends the process itself, with that code,
    when threads hang at the end.

    Args:
        config: of the engine.
        settings: of the application.
        listen: where to listen.
        shutdown_timeout: seconds that running requests get at the end.
        log_level: of uvicorn.
        access_log: whether uvicorn writes a line for each request, at "info".

    Raises:
        StartError: the port or the model is not to be had.
    """
    if listen.tls is not None:
        listen.tls.check()
    sock = bind(listen)
    tell(f"Loading {config.model} …")
    try:
        engine = _load(config)
        # Closing waits for the engine's current step; nobody waits for this thread longer than for others.
        closing = threading.Thread(target=engine.close, name="close-engine")
        try:
            _serve(engine, settings, sock, listen, closing, log_level, access_log, shutdown_timeout)
        finally:
            _start_once(closing)
    finally:
        if listen.uds is not None and listen.fd is None:
            Path(listen.uds).unlink(missing_ok=True)
    code = 0 if engine.error is None else 1
    exit_despite_threads(_END_SECONDS, code)
    return code


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
    access_log: bool,
    shutdown_timeout: float,
) -> None:
    from .app import build_app

    app = build_app(engine, settings)
    server = _make_server(
        app,
        closing,
        listen,
        log_level=log_level,
        access_log=access_log,
        shutdown_timeout=shutdown_timeout,
    )

    def stop(*_: Any) -> None:
        server.should_exit = True

    # uvicorn puts its own handlers in place while it serves and raises the signal again afterwards, for the
    # handlers it found: with these the process then goes on to its end, with exit code 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        sock.listen(_BACKLOG)
    except OSError as error:  # Somebody else began to listen while the model was loading.
        raise bind_error(listen, error) from error
    scheme = "http" if listen.tls is None else "https"
    tell(
        banner(engine, settings, sock, app.version, scheme=scheme),
        url=url(sock, scheme=scheme) + settings.http.root_path,
        served_model_names=settings.served_model_names or (engine.config.model,),
        device=engine.device,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        kv_cache_tokens=engine.stats().kv_pages_total * engine.config.page_size,
        with_api_key=bool(settings.api_keys),
        open_to_network=is_open(sock),
    )
    try:
        server.run(sockets=[sock])
    finally:
        app.state.context.close()


def _make_server(
    app: Any,
    closing: threading.Thread,
    listen: Listen,
    *,
    log_level: str,
    access_log: bool,
    shutdown_timeout: float,
) -> Any:
    import uvicorn

    traffic = app.state.context.traffic

    class Server(uvicorn.Server):
        # While requests run it goes on listening, so that load balancers read at /health that they must go
        # elsewhere. Once the grace is over, or at a second Ctrl-C (`force_exit`), the engine is closed:
        # unfinished requests then fail, and their clients are told so; uvicorn alone would cut them off.
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            traffic.draining = True
            timer = asyncio.get_running_loop().call_later(shutdown_timeout, _start_once, closing)
            try:
                await drained(shutdown_timeout, hurried=lambda: self.force_exit)
                if self.force_exit:
                    _start_once(closing)
                    await drained(_HASTE)
                await super().shutdown(sockets)
            finally:
                timer.cancel()

    async def drained(seconds: float, hurried: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + seconds
        # As uvicorn waits for its own flags, such as `force_exit`, which a signal sets.
        while traffic.in_flight and time.monotonic() < end and not hurried():  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_TICK)

    tls = listen.tls
    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=log_level,
            access_log=access_log and log_level in ("debug", "info"),
            lifespan="off",
            server_header=False,
            headers=[("server", f"myllm/{app.version}")],
            # Above the 60 s for which clients and proxies keep idle connections: whoever closes first races
            # with a request.
            timeout_keep_alive=75,
            timeout_graceful_shutdown=int(shutdown_timeout) + 3,
            **{}
            if tls is None
            else {
                "ssl_keyfile": tls.keyfile,
                "ssl_certfile": tls.certfile,
                "ssl_ca_certs": tls.ca_certs,
                "ssl_cert_reqs": tls.cert_reqs,
            },
        )
    )


def banner(
    engine: AsyncEngine, settings: ServerSettings, sock: socket.socket, version: str, *, scheme: str = "http"
) -> str:
    """Return what a user wants to know when the server is ready."""
    names = ", ".join(settings.served_model_names or (engine.config.model,))
    stats = engine.stats()
    base = url(sock, scheme=scheme) + settings.http.root_path
    page = engine.config.page_size
    for_people = f"  Page      {base}/ui\n" if settings.enable_ui else ""
    key = ", with an API key" if settings.api_keys else ""
    warning = ""
    if not settings.api_keys and is_open(sock):
        warning = (
            "Anyone on the network may use it: `--api-key` asks for a key, `--host 127.0.0.1` closes it.\n"
        )
    return (
        f"myllm {version} is ready: {engine.model_name}, served as {names}{key}\n"
        f"  device    {engine.device}, {engine.dtype}\n"
        f"  context   {engine.max_model_len} tokens; {engine.config.max_num_seqs} sequences at once\n"
        f"  KV cache  {stats.kv_pages_total} pages of {page} tokens ({stats.kv_pages_total * page} tokens)\n"
        f"  OpenAI    {base}/v1\n"
        f"  TGI       {base}/generate\n"
        f"  API       {base}{'/docs' if settings.http.enable_docs else '/v1/models'}\n"
        f"{for_people}"
        f"{warning}"
        f"Stop it with Ctrl-C or `kill {os.getpid()}`.\n"
    )
