"""Run the command up to the point where a server would start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from myllm_engine.config import EngineConfig
from myllm_engine.server.__main__ import application
from myllm_engine.server.listen import Listen
from myllm_engine.server.settings import ServerSettings


@dataclass(frozen=True)
class Configured:
    """What the command has made of its options."""

    engine: EngineConfig
    settings: ServerSettings
    listen: Listen
    process: dict[str, Any]
    said: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that runs the command in this process, with variables of its own."""

    def run(*arguments: str, **variables: str) -> Any:
        return CliRunner().invoke(application(), list(arguments), env=variables)

    return run


@pytest.fixture
def configured(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Configured]:
    """Return a function that runs the command and returns what it would start a server with."""

    def configure(*arguments: str, **variables: str) -> Configured:
        made: list[Any] = []

        def start(*given: Any, **process: Any) -> int:
            made.extend([*given, process])
            return 0

        monkeypatch.setattr("myllm_engine.server.run.run", start)
        done = run(*arguments, **variables)
        assert done.exit_code == 0, done.output
        return Configured(*made, done.output)

    return configure
