"""Our own OpenAPI document, and whatever it allows or forbids: nothing of that is an error of the server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from myllm_engine.async_engine import AsyncEngine
from myllm_engine.config import EngineConfig


@pytest.fixture(scope="module")
def small(tiny_model) -> Iterator[AsyncEngine]:
    """A real engine whose answers are short because there is room for no more."""
    engine = AsyncEngine(
        EngineConfig(
            model=str(tiny_model("llama")),
            dtype="float32",
            device="cpu",
            max_model_len=48,
            kv_cache_memory=16 * 2**20,
            chat_template="{% for message in messages %}{{ message.content }}\n{% endfor %}",
        )
    )
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def url(small, serve_engine) -> Iterator[str]:
    """Where it is served."""
    with serve_engine(small) as live:
        yield live.url


def drive(url: str, examples: int) -> dict[str, set[int]]:
    """Send each operation of the server's document so many requests, valid and not; return the statuses of each."""
    seen: dict[str, set[int]] = {}
    for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = result.ok()
        seen[operation.label] = send(operation, schemathesis.GenerationMode.POSITIVE, examples)
        if operation.body:
            seen[operation.label] |= send(operation, schemathesis.GenerationMode.NEGATIVE, examples)
    return seen


def send(operation, mode, examples: int) -> set[int]:
    """Send so many requests of one mode; return their statuses."""
    statuses = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case) -> None:
        response = case.call(timeout=60)
        assert response.status_code < 500, (response.text[:500], case.as_curl_command()[:2000])
        statuses.add(response.status_code)

    each()
    return statuses


def test_a_few_requests_of_each_kind(url, small):
    seen = drive(url, 3)
    assert {"POST /v1/chat/completions", "POST /v1/completions", "POST /generate", "GET /ui/stats"} <= set(
        seen
    )
    # They came to the handlers, and were not all refused, nor all taken.
    assert set().union(*seen.values()) >= {200, 400, 422}
    assert small.error is None
    assert httpx.get(f"{url}/health").status_code == 200
    assert small.stats().num_running == 0


@pytest.mark.slow
def test_many_requests_of_each_kind(url, small):
    drive(url, 60)
    assert small.error is None
