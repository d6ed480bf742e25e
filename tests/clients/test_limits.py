"""The retry budget and the rate of calls."""

from __future__ import annotations

import time

import pytest

import myllm
from myllm import Client
from myllm.limits import RateLimiter, RetryBudget

ANSWER = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_runs_out_and_comes_back_with_time_and_success():
    clock = Clock()
    budget = RetryBudget(3, clock)
    assert [budget.spend() for _ in range(4)] == [True, True, True, False]
    clock.now += 2
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(6):
        budget.succeeded()
    assert [budget.spend() for _ in range(2)] == [True, False]


def test_a_storm_of_failures_is_not_multiplied_by_retries(wire):
    wire.handler = lambda seen, reply: reply.json({}, 503, {"Retry-After": "0"})
    with Client(wire.url, model="m", dialect="vllm", max_retries=2) as client:
        for _ in range(60):
            with pytest.raises(myllm.OverloadedError):
                client.chat("x")
    assert 60 + 45 < len(wire.seen) < 60 + 60  # not 180


def test_calls_are_spaced_out_after_one_second_s_worth():
    clock = Clock()
    limiter = RateLimiter(4, clock)
    assert [limiter.reserve() for _ in range(4)] == [0, 0, 0, 0]
    assert [limiter.reserve() for _ in range(2)] == pytest.approx([0.25, 0.5])
    clock.now += 10
    assert limiter.reserve() == 0


def test_a_client_keeps_to_its_rate(wire):
    wire.answers(ANSWER)
    with Client(wire.url, model="m", dialect="vllm", requests_per_second=10) as client:
        start = time.monotonic()
        for _ in range(14):
            client.chat("x")
        assert 0.35 < time.monotonic() - start < 2


def test_a_place_after_the_deadline_is_refused_at_once_and_not_taken(wire):
    wire.answers(ANSWER)
    with Client(wire.url, model="m", dialect="vllm", requests_per_second=0.5) as client:
        client.chat("x")
        start = time.monotonic()
        for _ in range(3):
            with pytest.raises(myllm.RequestTimeoutError, match="requests_per_second"):
                client.chat("x", timeout=0.5)
        assert time.monotonic() - start < 0.4
    assert len(wire.seen) == 1


@pytest.mark.parametrize("name", ["requests_per_second", "max_concurrency", "hedge_after", "health_interval"])
@pytest.mark.parametrize("value", [0, -1, True, "3"])
def test_a_limit_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(myllm.InvalidParameterError, match=name):
        Client("http://localhost:1", **{name: value})


def test_no_more_than_max_concurrency_are_in_flight(wire):
    import threading
    from concurrent.futures import ThreadPoolExecutor

    running, most, lock = 0, 0, threading.Lock()

    def handler(seen, reply):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        reply.json(ANSWER)

    wire.handler = handler
    with Client(wire.url, model="m", dialect="vllm", max_concurrency=3) as client:
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(client.chat, ["x"] * 40))
    assert most == 3


def test_a_place_that_never_comes_free_ends_with_the_deadline(wire):
    wire.streams(*["data: {}\n\n"] * 0)
    wire.handler = lambda seen, reply: (reply.start_stream(), time.sleep(1))
    with Client(wire.url, model="m", dialect="vllm", max_concurrency=1) as client:
        stream = client.stream_chat("x")
        with pytest.raises(myllm.RequestTimeoutError) as caught:
            client.chat("x", timeout=0.2)
        assert caught.value.phase in ("pool", "total")
        stream.close()
