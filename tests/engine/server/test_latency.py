"""How long readers of answers have waited lately."""

from __future__ import annotations

from myllm_engine.request import CompletionOutput, RequestOutput
from myllm_engine.server.latency import Latency

NOTHING = {"p50": None, "p95": None}


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def output(*tokens: list[int]) -> RequestOutput:
    """Return what each sequence gained."""
    sequences = [CompletionOutput(index=index, text="", token_ids=ids) for index, ids in enumerate(tokens)]
    return RequestOutput("id", [1], sequences, False)


def test_nothing_was_measured_yet():
    assert Latency().summary() == {"first_token": NOTHING, "between_tokens": NOTHING}


def test_first_and_further_tokens_are_told_apart():
    clock = Clock()
    latency = Latency(clock=clock)
    watch = latency.watch()
    clock.now += 0.25
    watch.saw(0, output([5]))
    clock.now += 0.01
    watch.saw(0, output([6]))
    clock.now += 0.06
    watch.saw(0, output([7, 8, 9]))  # the reader came late: three steps at once
    assert latency.summary() == {
        "first_token": {"p50": 250.0, "p95": 250.0},
        "between_tokens": {"p50": 10.0, "p95": 10.0},
    }


def test_each_sequence_of_each_prompt_has_a_first_token():
    clock = Clock()
    latency = Latency(clock=clock)
    watch = latency.watch()
    clock.now += 1
    watch.saw(0, output([5], []))  # the second one has no token yet
    clock.now += 1
    watch.saw(0, output([], [5]))
    watch.saw(1, output([5]))
    assert latency.summary()["first_token"] == {"p50": 2000.0, "p95": 2000.0}
    assert latency.summary()["between_tokens"] == NOTHING


def test_percentiles_are_of_what_was_measured():
    clock = Clock()
    latency = Latency(clock=clock)
    for milliseconds in range(1, 101):
        clock.now = 100.0
        watch = latency.watch()
        clock.now += milliseconds / 1000
        watch.saw(0, output([5]))
    assert latency.summary()["first_token"] == {"p50": 50.0, "p95": 95.0}


def test_what_is_long_ago_counts_no_more():
    clock = Clock()
    latency = Latency(seconds=30, clock=clock)
    watch = latency.watch()
    clock.now += 1
    watch.saw(0, output([5]))
    clock.now += 30
    assert latency.summary()["first_token"]["p50"] == 1000
    clock.now += 0.01
    assert latency.summary()["first_token"] == NOTHING


def test_no_more_than_so_many_are_kept():
    clock = Clock()
    latency = Latency(most=3, clock=clock)
    watch = latency.watch()
    watch.saw(0, output([5]))
    for seconds in (9, 9, 1, 1, 1):
        clock.now += seconds
        watch.saw(0, output([5]))
    assert latency.summary()["between_tokens"] == {"p50": 1000.0, "p95": 1000.0}
