"""When a server is slow, another one is asked too."""

from __future__ import annotations

import threading
import time

import pytest

import myllm
from myllm import AsyncClient, Client
from myllm.limits import RetryBudget


def answer(text: str):
    return {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}


@pytest.fixture
def cancelled(wire, other_wire) -> threading.Event:
    """`wire` is slow and notices when its client leaves; `other_wire` is quick."""
    left = threading.Event()

    def slow(seen, reply):
        reply.start_stream()
        try:
            for _ in range(100):
                reply.piece(" ")
                time.sleep(0.02)
        except OSError:
            left.set()

    wire.handler = slow
    other_wire.answers(answer("quick"))
    return left


def test_the_quicker_server_answers_and_the_other_request_is_cancelled(wire, other_wire, cancelled):
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.1) as client:
        start = time.monotonic()
        reply = client.chat("x")
        assert 0.1 < time.monotonic() - start < 1
        assert reply.text == "quick"
        assert reply.endpoint == other_wire.url
        assert cancelled.wait(5)
        wait_idle(client)


async def test_the_same_for_async(wire, other_wire, cancelled):
    async with AsyncClient([wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.1) as client:
        reply = await client.chat("x")
        assert (reply.text, reply.endpoint) == ("quick", other_wire.url)
        assert cancelled.wait(5)
        assert [status.in_flight for status in client.endpoints()] == [0, 0]


@pytest.mark.parametrize("hedge_after", [5.0])
def test_a_quick_answer_is_not_hedged(wire, other_wire, hedge_after):
    wire.answers(answer("first"))
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=hedge_after) as client:
        assert client.chat("x").text == "first"
    assert other_wire.seen == []


def test_one_server_alone_is_not_asked_twice(wire):
    def slow(seen, reply):
        time.sleep(0.2)
        reply.json(answer("late"))

    wire.handler = slow
    with Client(wire.url, model="m", dialect="vllm", hedge_after=0.05) as client:
        assert client.chat("x").text == "late"
    assert len(wire.seen) == 1


def test_a_backup_that_fails_does_not_win(wire, other_wire):
    def slow(seen, reply):
        time.sleep(0.3)
        reply.json(answer("late"))

    wire.handler = slow
    other_wire.handler = lambda seen, reply: reply.json({}, 500)
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.05) as client:
        assert client.chat("x").text == "late"


async def test_nor_does_it_for_async(wire, other_wire, free_port):
    def slow(seen, reply):
        time.sleep(0.3)
        reply.json(answer("late"))

    wire.handler = slow
    urls = [wire.url, f"http://127.0.0.1:{free_port}"]
    async with AsyncClient(urls, model="m", dialect="vllm", hedge_after=0.05) as client:
        assert (await client.chat("x")).text == "late"


def test_when_both_fail_the_first_server_s_error_is_told(wire, other_wire):
    def slow(seen, reply):
        time.sleep(0.2)
        reply.json({"error": {"message": "first"}}, 500)

    wire.handler = slow
    other_wire.handler = lambda seen, reply: reply.json({"error": {"message": "second"}}, 500)
    with (
        Client(
            [wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.05, max_retries=0
        ) as client,
        pytest.raises(myllm.ServerError, match="first"),
    ):
        client.chat("x")


def wait_idle(client: Client) -> None:
    end = time.monotonic() + 2
    while any(status.in_flight for status in client.endpoints()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_loser_is_never_sent_again(wire, other_wire):
    """On a connection that was used before, its closing looks like that of an idle connection."""

    def slow(seen, reply):
        if len(wire.seen) > 1:
            time.sleep(1)
        reply.json(answer("slow"))

    wire.handler = slow
    other_wire.answers(answer("quick"))
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.1) as client:
        assert client.chat("x").text == "slow"  # makes the connection
        assert client.chat("x").text == "quick"
        assert client.chat("x").text == "quick"  # hedged
        time.sleep(0.2)
    assert len(wire.seen) == 2


def test_a_hedge_that_waits_for_a_place_is_not_sent_when_it_is_too_late(wire, other_wire):
    def slow(seen, reply):
        time.sleep(0.3)
        reply.json(answer("slow"))

    wire.handler = slow
    with Client(
        [wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.05, max_concurrency=1
    ) as client:
        assert client.chat("x").text == "slow"
        time.sleep(0.2)
    assert other_wire.seen == []


def test_a_server_with_another_model_is_asked_for_its_own(wire, other_wire):
    def serving(name, seconds):
        def handler(seen, reply):
            if seen.method == "GET":
                reply.json({"data": [{"id": name}]})
                return
            time.sleep(seconds)
            good = seen.body["model"] == name
            reply.json(
                answer(name) if good else {"error": {"message": "no such model"}}, 200 if good else 404
            )

        return handler

    wire.handler, other_wire.handler = serving("a", 0.3), serving("b", 0)
    with Client([wire.url, other_wire.url], dialect="vllm", hedge_after=0.1) as client:
        assert client.chat("x").text == "a"  # what b serves is not known yet, so it cannot stand in
        assert client.chat("x").text == "b"
        assert client.chat("x").text == "b"  # hedged, and b is asked for b


def test_a_server_that_is_always_overtaken_is_left_alone(wire, other_wire):
    wire.handler = lambda seen, reply: time.sleep(2)
    other_wire.answers(answer("quick"))
    with Client([wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.05) as client:
        assert {client.chat("x").text for _ in range(10)} == {"quick"}
        assert client.endpoints()[0].state == "open"
        assert client.endpoints()[0].failures == 3


def test_hedges_have_the_retries_budget(wire, other_wire):
    def slow(seen, reply):
        time.sleep(0.05)
        reply.json(answer("x"))

    wire.handler = other_wire.handler = slow
    with Client(
        [wire.url, other_wire.url], model="m", dialect="vllm", hedge_after=0.01, breaker=None
    ) as client:
        client._route.budget = RetryBudget(5)
        for _ in range(30):
            client.chat("x")
    assert len(wire.seen) + len(other_wire.seen) < 30 + 5 + 12
