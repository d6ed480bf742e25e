"""Real HTTP on a loopback port: one server with the bundled model, and servers with a scripted engine."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import uvicorn

from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig
from myllm_engine.request import CompletionOutput, Request, RequestOutput, TokenLogprob
from myllm_engine.server.app import build_app
from myllm_engine.server.settings import ServerSettings
from myllm_engine.stats import EngineStats, StepStats


@dataclass(frozen=True)
class Live:
    """A server under test: where it is and what it serves."""

    url: str
    engine: Any


@contextmanager
def serve_engine(engine: Any, settings: ServerSettings | None = None) -> Iterator[Live]:
    """Serve an engine from a thread, on a free port."""
    app = build_app(engine, settings or ServerSettings())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        host, port = sock.getsockname()
        yield Live(f"http://{host}:{port}", engine)
        server.should_exit = True
        app.state.context.close()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def engine() -> Iterator[AsyncEngine]:
    """The bundled model, in float32: greedy answers do not depend on what else is in the batch."""
    engine = AsyncEngine(EngineConfig(dtype="float32", kv_cache_memory=512 * 2**20))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def live(engine: AsyncEngine) -> Iterator[Live]:
    """A server with the bundled model."""
    with serve_engine(engine) as live:
        yield live


@pytest.fixture(scope="session")
def http(live: Live) -> Iterator[httpx.Client]:
    """A plain HTTP client of `live`."""
    with httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


Serve = Callable[[ServerSettings], AbstractContextManager[Live]]


@pytest.fixture(scope="session")
def serve(engine: AsyncEngine) -> Serve:
    """Return a function that serves the bundled model with settings of its own."""

    def serve(settings: ServerSettings) -> AbstractContextManager[Live]:
        return serve_engine(engine, settings)

    return serve


class ByteTokenizer:
    """One token a byte; 256 ends the sequence."""

    chat_template = None
    eos_token_ids = frozenset({256})
    special_tokens = MappingProxyType({"<end>": 256})
    vocab_size = 257

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        places = [place for place, character in enumerate(text) for _ in character.encode()]
        return self.encode(text), [(place, place + 1) for place in places]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return b"<end>" if token_id == 256 else bytes([token_id])

    def is_special(self, token_id: int) -> bool:
        return token_id == 256

    def render_chat(self, messages: list[dict[str, Any]], form: str = "auto", /, **kwargs: Any) -> str:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


@dataclass
class ScriptedEngine:
    """An engine that says what a test wants it to say: for failures that a healthy one does not have.

    A number in its script is a pause, in seconds.
    """

    script: list[RequestOutput | BaseException | float] = field(default_factory=list)
    error: BaseException | None = None
    config: EngineConfig = field(default_factory=EngineConfig)
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    vision: None = None
    model_name: str = "Scripted"
    max_model_len: int = 100
    vocab_size: int = 257
    hidden_size: int = 4
    device: str = "cpu"
    dtype: str = "float32"
    loras: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    compiler: Callable[[Request], Awaitable[None]] | None = None
    generation_config: dict[str, Any] = field(default_factory=dict)
    steps: StepStats = field(default_factory=StepStats)

    def add_observer(self, observer: Any) -> None:
        pass

    def remove_observer(self, observer: Any) -> None:
        pass

    async def prepare(self, request: Request) -> None:
        self.requests.append(request)
        if self.compiler is not None and request.params.structured is not None:
            await self.compiler(request)

    async def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        for item in self.script:
            await asyncio.sleep(item if isinstance(item, float) else 0)
            if isinstance(item, float):
                continue
            if isinstance(item, BaseException):
                raise item
            yield item

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0)

    def close(self) -> None:
        pass


def said(*sequences: tuple[str, bytes, str | None], prompt: str = "p") -> RequestOutput:
    """Return an output in which sequence i gained `(text, token bytes, finish_reason)`."""
    outputs = [
        CompletionOutput(
            index=index,
            text=text,
            token_ids=list(new),
            logprobs=[TokenLogprob(token, -0.5, 1, ((token, -0.5),)) for token in new],
            finish_reason=reason,  # type: ignore[arg-type]
        )
        for index, (text, new, reason) in enumerate(sequences)
    ]
    finished = all(reason for _, _, reason in sequences)
    return RequestOutput("id", list(prompt.encode()), outputs, finished)


Scripted = Callable[..., AbstractContextManager[Live]]


@pytest.fixture(scope="session")
def scripted() -> Scripted:
    """Return a function that serves a `ScriptedEngine`: `with scripted([said(...)]) as live`."""

    @contextmanager
    def serve(
        script: Sequence[RequestOutput | BaseException | float] = (),
        settings: ServerSettings | None = None,
        **attributes: Any,
    ) -> Iterator[Live]:
        with serve_engine(ScriptedEngine(list(script), **attributes), settings) as live:
            yield live

    return serve


@pytest.fixture(scope="session", name="serve_engine")
def serve_engine_fixture() -> Callable[..., AbstractContextManager[Live]]:
    """Hand `serve_engine` on: test modules cannot import from here."""
    return serve_engine


@pytest.fixture(scope="session", name="said")
def said_fixture() -> Callable[..., RequestOutput]:
    """Hand `said` on: test modules cannot import from here."""
    return said
