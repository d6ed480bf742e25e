"""An engine of this process that is started by the name of its model: once, shared, and with clear errors."""

from __future__ import annotations

import importlib.metadata
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import myllm
from myllm import engines


class Installed:
    """What an entry point names: the real one, but for `start`, which hands out the session's engine slowly."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.started: list[str] = []
        self.slow = threading.Event()

    def __call__(self, engine: Any) -> Any:
        from myllm_engine.server.inprocess import dial

        return dial(engine)

    def start(self, model: str) -> Any:
        self.started.append(model)
        if model == "slow":
            self.slow.wait(5)
        elif model == "nowhere":
            raise FileNotFoundError("there is no such folder")
        else:
            time.sleep(0.05)
        return self.engine


@pytest.fixture
def installed(local_engine: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """The one installed engine."""
    made = Installed(local_engine)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [Entry(made)])
    monkeypatch.setattr(engines, "_started", {})
    monkeypatch.setattr(engines, "_turns", {})
    yield made
    made.slow.set()


class Entry:
    """An entry point."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def load(self) -> Any:
        if isinstance(self._thing, Exception):
            raise self._thing
        return self._thing


def test_a_client_names_the_model_it_wants(installed: Installed) -> None:
    with myllm.Client(engine="some/model", temperature=0, max_tokens=8) as client:
        assert client.chat("What is the capital of France?").text == "The capital of France is Paris."
    assert installed.started == ["some/model"]


def test_many_threads_start_a_model_once_and_no_other_waits(installed: Installed) -> None:
    with ThreadPoolExecutor(9) as pool:
        slow = pool.submit(engines.started_engine, "slow")
        got = list(pool.map(engines.started_engine, ["a"] * 8))
        assert not slow.done()
        installed.slow.set()
        assert slow.result(5) is installed.engine
    assert all(one is installed.engine for one in got)
    assert sorted(installed.started) == ["a", "slow"]


def test_a_model_that_cannot_be_loaded_is_tried_again(installed: Installed) -> None:
    for _ in range(2):
        with pytest.raises(
            myllm.ServerStartError, match="'nowhere' could not be loaded .* there is no such folder"
        ) as caught:
            myllm.Client(engine="nowhere")
        assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert installed.started == ["nowhere", "nowhere"]


@pytest.mark.parametrize("entries", [[], [Entry(ModuleNotFoundError("No module named 'torch'"))]])
def test_without_an_engine_the_extra_is_named(entries: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: entries)
    with pytest.raises(myllm.MissingExtraError, match=r"pip install 'myllm-suite\[engine\]'"):
        myllm.Client(engine="smollm2-of-nobody")


def test_the_engine_that_is_installed_says_why_a_model_cannot_be_loaded() -> None:
    with pytest.raises(myllm.ServerStartError, match="no/such-model"):
        myllm.AsyncClient(engine="no/such-model")
