"""Check hub ids without a network, and with a hub on this machine."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from myllm_engine.errors import ModelLoadError
from myllm_engine.models.hub import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of the hub, which is at a port where nobody listens."""
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_unreachable_hub_is_told_of_at_once(cache):
    started = time.perf_counter()
    with pytest.raises(
        ModelLoadError, match=r"'org/name@v1' is not in the local cache, and the hub at http://127\.0\.0\.1:9"
    ):
        locate("org/name", "v1")
    assert time.perf_counter() - started < 5


def test_offline_mode_is_named(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match="`HF_HUB_OFFLINE`"):
        locate("org/name", None)


def test_what_is_cached_loads_without_a_hub(cache):
    snapshot = cache / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cache / "models--org--name" / "refs").mkdir()
    (cache / "models--org--name" / "refs" / "main").write_text(COMMIT)
    assert Path(locate("org/name", None)) == snapshot
    assert Path(locate("org/name", COMMIT)) == snapshot


def test_a_reachable_hub_is_left_to_transformers(hub):
    assert locate("org/name", None) == "org/name"
