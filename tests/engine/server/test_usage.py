"""What answers tell of tokens and times, as the server's settings have it."""

from __future__ import annotations

import json

import httpx
import pytest

from myllm_engine.server.settings import ServerSettings

ROUTES = ["/v1/completions", "/v1/chat/completions"]


def subject(route, text):
    return (
        {"prompt": text} if route == "/v1/completions" else {"messages": [{"role": "user", "content": text}]}
    )


def chunks(response):
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


@pytest.fixture(scope="module")
def talkative(serve):
    settings = ServerSettings(
        enable_prompt_tokens_details=True,
        enable_force_include_usage=True,
        enable_per_request_metrics=True,
    )
    with serve(settings) as live, httpx.Client(base_url=live.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize("route", ROUTES)
def test_cached_tokens_are_told(talkative, http, route):
    body = {**subject(route, f"{route}: " + "one two three four five six seven eight " * 8), "max_tokens": 1}
    first = talkative.post(route, json=body).json()["usage"]
    again = talkative.post(route, json=body).json()["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] < 48
    assert 48 <= again["prompt_tokens_details"]["cached_tokens"] < again["prompt_tokens"]
    # Of the other server, which was not asked to tell.
    assert http.post(route, json=body).json()["usage"]["prompt_tokens_details"] is None


@pytest.mark.parametrize("route", ROUTES)
def test_times_are_told(talkative, http, route):
    body = {**subject(route, "Count to ten:"), "max_tokens": 6, "ignore_eos": True, "temperature": 0}
    metrics = talkative.post(route, json=body).json()["metrics"]
    names = [
        "time_to_first_token_ms",
        "generation_time_ms",
        "queue_time_ms",
        "mean_itl_ms",
        "tokens_per_second",
    ]
    assert list(metrics) == names
    assert all(value >= 0 for value in metrics.values())
    assert metrics["mean_itl_ms"] == pytest.approx(metrics["generation_time_ms"] / 5)
    whole = metrics["time_to_first_token_ms"] + metrics["generation_time_ms"]
    assert metrics["tokens_per_second"] == pytest.approx(6000 / whole)

    *_, last = chunks(talkative.post(route, json={**body, "stream": True}))
    assert last["choices"] == []
    assert list(last["metrics"]) == names
    assert "metrics" not in http.post(route, json=body).json()
    # They are one sequence's.
    assert "metrics" not in talkative.post(route, json={**body, "temperature": 1, "n": 2}).json()


@pytest.mark.parametrize("route", ROUTES)
def test_every_chunk_can_carry_the_counts_unasked(talkative, route):
    body = {**subject(route, "Hello"), "max_tokens": 3, "ignore_eos": True, "stream": True}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks(talkative.post(route, json=body))]
    assert counts == sorted(counts)
    assert counts[-1] == 3


def test_a_prompt_that_is_only_read_has_no_times_of_tokens(talkative):
    body = {"prompt": "Hello", "max_tokens": 0, "echo": True}
    metrics = talkative.post("/v1/completions", json=body).json()["metrics"]
    assert metrics.pop("queue_time_ms") >= 0
    assert set(metrics.values()) == {None}
