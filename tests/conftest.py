"""What all tests share: a quiet environment, one real server with the bundled model, and a server for faults."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Before any framework is imported: no network, no cache of the developer's, no proxy, no foreign server.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="myllm-dspy-cache-")
os.environ["AUTOGEN_USE_DOCKER"] = "0"
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # GPU kernels run on the CPU; Triton reads it when it is imported
for _name in list(os.environ):
    if _name == "MYLLM_LIVE_SERVERS":
        continue
    if _name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") or _name.startswith(
        ("MYLLM_", "OPENAI_")
    ):
        del os.environ[_name]

# What a shell starts in the background ignores Ctrl-C, and so would every process that a test starts and stops by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

import myllm  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[myllm.Server]:
    """`myllm serve smollm2` in a process of its own, on a free port, for the whole session."""
    with myllm.Server("smollm2") as running:
        yield running


@pytest.fixture(scope="session")
def local_engine() -> Iterator[Any]:
    """The bundled model in this process, as `server` has it in its own."""
    from myllm_engine import AsyncEngine, EngineConfig

    engine = AsyncEngine(EngineConfig(kv_cache_memory=256 * 2**20))
    yield engine
    engine.close()


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    names: tuple[str, ...] = ()


@dataclass
class WireServer:
    """Answers with `handler(seen, reply)`; keeps every request in `seen`."""

    handler: Callable[[Seen, Reply], None] = lambda seen, reply: reply.json({})
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[Any]:
        return [s.body for s in self.seen]

    def answers(self, *bodies: Any) -> None:
        """Answer with these JSON bodies, one a request, the last one for ever."""
        waiting = list(bodies)

        def handler(seen: Seen, reply: Reply) -> None:
            reply.json(waiting.pop(0) if len(waiting) > 1 else waiting[0])

        self.handler = handler

    def streams(self, *pieces: bytes | str) -> None:
        """Answer with these pieces of an event stream, each a chunk of its own, ended properly."""

        def handler(seen: Seen, reply: Reply) -> None:
            reply.start_stream()
            for piece in pieces:
                reply.piece(piece)
            reply.end_stream()

        self.handler = handler


class Reply:
    """Writes an answer, whole or broken."""

    def __init__(self, http: BaseHTTPRequestHandler) -> None:
        self._http = http

    def json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.raw(json.dumps(body).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def raw(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._http.send_response(status)
        for name, value in (headers or {}).items():
            self._http.send_header(name, value)
        self._http.send_header("Content-Length", str(len(body)))
        self._http.end_headers()
        self._http.wfile.write(body)

    def set_when_left(self, left: threading.Event) -> None:
        """Wait for the client to leave, five seconds at most, and set `left` if it does."""
        connection = self._http.connection
        connection.settimeout(5)
        if connection.recv(1) == b"":
            left.set()
        self._http.close_connection = True

    def start_stream(self) -> None:
        self._http.send_response(200)
        self._http.send_header("Content-Type", "text/event-stream")
        self._http.send_header("Transfer-Encoding", "chunked")
        self._http.end_headers()

    def piece(self, data: bytes | str) -> None:
        data = data.encode() if isinstance(data, str) else data
        self._http.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._http.wfile.flush()

    def end_stream(self) -> None:
        self._http.wfile.write(b"0\r\n\r\n")

    def hang_up(self) -> None:
        """Break the connection off."""
        self._http.connection.shutdown(socket.SHUT_RDWR)
        self._http.close_connection = True


@pytest.fixture
def wire() -> Iterator[WireServer]:
    """A `WireServer` on a free port."""
    with _serving() as state:
        yield state


@pytest.fixture
def other_wire() -> Iterator[WireServer]:
    """Another one."""
    with _serving() as state:
        yield state


@contextmanager
def _serving() -> Iterator[WireServer]:
    state = WireServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def _any(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            seen = Seen(
                self.command,
                self.path,
                {k.lower(): v for k, v in self.headers.items()},
                json.loads(data) if data else None,
                tuple(self.headers),
            )
            state.seen.append(seen)
            try:
                state.handler(seen, Reply(self))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client left, as some tests mean it to

        do_GET = do_POST = _any

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Broken connections are what these tests are about."""

    http = QuietServer(("127.0.0.1", 0), Handler)
    state.port = http.server_port
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port whose connections are never answered: a full accept queue drops the handshake."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
            fillers.append(filler)
        yield port
        for filler in fillers:
            filler.close()
