"""Identical calls on their way share one request."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import myllm
from myllm import AsyncClient, Client

ANSWER = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}


@pytest.fixture
def slow(wire):
    def handler(seen, reply):
        time.sleep(0.15)
        reply.json(ANSWER)

    wire.handler = handler
    return wire


def test_threads_share_one_request_and_later_calls_make_a_new_one(slow):
    with Client(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.chat("x", temperature=0).text, range(8)))
        assert answers == ["Hi"] * 8
        assert len(slow.seen) == 1
        client.chat("x", temperature=0)
        assert len(slow.seen) == 2


async def test_tasks_do_too(slow):
    async with AsyncClient(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        answers = await asyncio.gather(*(client.chat("x", seed=1) for _ in range(8)))
        assert {answer.text for answer in answers} == {"Hi"}
        assert len(slow.seen) == 1


async def test_calls_that_differ_or_are_sampled_are_on_their_own(slow):
    async with AsyncClient(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        await asyncio.gather(
            client.chat("x", temperature=0),
            client.chat("y", temperature=0),
            client.chat("x"),
            client.chat("x"),
        )
    assert len(slow.seen) == 4


def test_a_failure_is_told_to_all(wire):
    def handler(seen, reply):
        time.sleep(0.1)
        reply.json({"error": {"message": "no"}}, 400)

    wire.handler = handler
    with Client(wire.url, model="m", dialect="vllm", coalesce=True) as client:

        def failing() -> bool:
            with pytest.raises(myllm.BadRequestError):
                client.chat("x", temperature=0)
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(future.result() for future in [pool.submit(failing) for _ in range(4)])
    assert len(wire.seen) == 1


async def test_one_cancelled_caller_does_not_take_the_answer_from_the_others(slow):
    async with AsyncClient(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        first = asyncio.ensure_future(client.chat("x", temperature=0))
        second = asyncio.ensure_future(client.chat("x", temperature=0))
        await asyncio.sleep(0.05)
        first.cancel()
        assert (await second).text == "Hi"
        assert len(slow.seen) == 1


async def test_when_all_callers_are_cancelled_the_request_is(wire):
    gone = threading.Event()

    def handler(seen, reply):
        reply.start_stream()
        try:
            while True:
                reply.piece(" ")
                time.sleep(0.02)
        except OSError:
            gone.set()

    wire.handler = handler
    async with AsyncClient(wire.url, model="m", dialect="vllm", coalesce=True) as client:
        tasks = [asyncio.ensure_future(client.chat("x", temperature=0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.to_thread(gone.wait, 5)


def test_a_follower_keeps_its_own_deadline(slow):
    with Client(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        leader = threading.Thread(target=lambda: client.chat("x", temperature=0))
        leader.start()
        time.sleep(0.03)
        with pytest.raises(myllm.RequestTimeoutError):
            client.chat("x", temperature=0, timeout=0.05)
        leader.join()


@pytest.mark.parametrize("hurried", [True, False])
async def test_one_with_more_time_works_on_when_the_one_it_waited_for_runs_out_of_time(slow, hurried):
    async with AsyncClient(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        first = asyncio.ensure_future(client.chat("x", temperature=0, timeout=0.08))
        await asyncio.sleep(0.02)
        second = asyncio.ensure_future(client.chat("x", temperature=0, timeout=0.08 if hurried else 10))
        with pytest.raises(myllm.RequestTimeoutError):
            await first
        if hurried:
            with pytest.raises(myllm.RequestTimeoutError):
                await second
        else:
            assert (await second).text == "Hi"


def test_so_it_is_for_threads(slow):
    with Client(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.chat, "x", temperature=0, timeout=0.08)
            time.sleep(0.02)
            assert pool.submit(client.chat, "x", temperature=0, timeout=10).result().text == "Hi"
            with pytest.raises(myllm.RequestTimeoutError):
                first.result()


def test_each_caller_has_an_answer_of_its_own_and_other_tenants_another_request(slow):
    with Client(slow.url, model="m", dialect="vllm", coalesce=True) as client:
        with ThreadPoolExecutor(4) as pool:
            same = [pool.submit(client.chat, "x", temperature=0) for _ in range(2)]
            others = [
                pool.submit(client.chat, "x", temperature=0, extra_headers={"X-Tenant": f"{i}"})
                for i in range(2)
            ]
            first, second = (future.result() for future in same)
            assert first == second
            assert first.choices is not second.choices
            [future.result() for future in others]
    assert len(slow.seen) == 3
