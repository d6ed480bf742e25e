"""How long tokens have been waited for lately."""

from __future__ import annotations

from myllm_engine.request import CompletionOutput, Request, RequestOutput
from myllm_engine.server.ui.latency import Latency

NOTHING = {"p50": None, "p95": None}


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def request(name: str = "id") -> Request:
    """Return a request of that name."""
    return Request(prompt_token_ids=[1], request_id=name)


def output(*tokens: list[int], name: str = "id", finished: bool = False) -> RequestOutput:
    """Return what each sequence gained."""
    sequences = [CompletionOutput(index=index, text="", token_ids=ids) for index, ids in enumerate(tokens)]
    return RequestOutput(name, [1], sequences, finished)


def test_nothing_was_measured_yet():
    assert Latency().summary() == {"first_token": NOTHING, "between_tokens": NOTHING}


def test_first_and_further_tokens_are_told_apart():
    clock = Clock()
    latency = Latency(clock=clock)
    latency.accepted(request())
    clock.now += 0.25
    latency.delivered([output([5])])
    clock.now += 0.01
    latency.delivered([output([6])])
    clock.now += 0.06
    latency.delivered([output([7, 8, 9])])
    assert latency.summary() == {
        "first_token": {"p50": 250.0, "p95": 250.0},
        "between_tokens": {"p50": 10.0, "p95": 10.0},
    }


def test_each_sequence_has_a_first_token():
    clock = Clock()
    latency = Latency(clock=clock)
    latency.accepted(request("a"))
    latency.accepted(request("b"))
    clock.now += 1
    latency.delivered([output([5], [], name="a")])  # the second one has no token yet
    clock.now += 1
    latency.delivered([output([], [5], name="a"), output([5], name="b")])
    assert latency.summary()["first_token"] == {"p50": 2000.0, "p95": 2000.0}
    assert latency.summary()["between_tokens"] == NOTHING


def test_what_ended_is_forgotten():
    clock = Clock()
    latency = Latency(clock=clock)
    for name in ("done", "lost"):
        latency.accepted(request(name))
    latency.delivered([output([5], name="done", finished=True)])
    latency.lost(["lost", "unknown"])
    clock.now += 1
    latency.delivered([output([5], name=name) for name in ("done", "lost", "unknown")])
    assert latency.summary() == {"first_token": {"p50": 0.0, "p95": 0.0}, "between_tokens": NOTHING}


def test_percentiles_are_of_what_was_measured():
    clock = Clock()
    latency = Latency(clock=clock)
    for milliseconds in range(1, 101):
        clock.now = 100.0
        latency.accepted(request())
        clock.now += milliseconds / 1000
        latency.delivered([output([5], finished=True)])
    assert latency.summary()["first_token"] == {"p50": 50.0, "p95": 95.0}


def test_what_is_long_ago_counts_no_more():
    clock = Clock()
    latency = Latency(seconds=30, clock=clock)
    latency.accepted(request())
    clock.now += 1
    latency.delivered([output([5])])
    clock.now += 30
    assert latency.summary()["first_token"]["p50"] == 1000
    clock.now += 0.01
    assert latency.summary()["first_token"] == NOTHING


def test_no_more_than_so_many_are_kept():
    clock = Clock()
    latency = Latency(most=3, clock=clock)
    latency.accepted(request())
    latency.delivered([output([5])])
    for seconds in (9, 9, 1, 1, 1):
        clock.now += seconds
        latency.delivered([output([5])])
    assert latency.summary()["between_tokens"] == {"p50": 1000.0, "p95": 1000.0}
