"""Answers of other kinds of server, replayed by the `wire` server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDED = Path(__file__).parent / "data" / "recorded"
_TYPES = {".json": "application/json", ".sse": "text/event-stream", ".ndjson": "application/x-ndjson"}


@pytest.fixture
def recorded() -> Callable[[str], bytes]:
    """The body of a recorded answer: `recorded("ollama/chat.json")`."""
    return lambda name: (RECORDED / name).read_bytes()


@pytest.fixture
def replay(wire: Any) -> Callable[..., Any]:
    """Let `wire` answer each path with a recorded body, or with `(status, body)`; 404 everywhere else."""

    def start(answers: dict[str, str | tuple[int, str]]) -> Any:
        def handler(seen: Any, reply: Any) -> None:
            found = answers.get(seen.path)
            status, name = found if isinstance(found, tuple) else (200, found)
            if name is None:
                reply.json({"detail": "Not Found"}, 404)
                return
            path = RECORDED / name
            reply.raw(path.read_bytes(), status, {"Content-Type": _TYPES[path.suffix]})

        wire.handler = handler
        return wire

    return start
