"""What holds under load and under failure: killed servers, many calls, many threads, several event loops."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import myllm
from myllm import AsyncClient, Client, Timeout

REPLICA = Path(__file__).with_name("replica.py")


class Replica:
    """A replica in a process of its own, which comes back on the port it had."""

    def __init__(self, name: str) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Replica:
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(REPLICA), str(self.port), self.name], stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"
        return self

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.communicate()
            self.process = None


@pytest.fixture
def replica() -> Iterator[Callable[[str], Replica]]:
    started: list[Replica] = []

    def start(name: str) -> Replica:
        started.append(Replica(name).start())
        return started[-1]

    yield start
    for one in started:
        one.kill()


def killing(victims: list[Replica], over: threading.Event) -> threading.Thread:
    """Kill one of the victims, and bring it back, again and again."""

    def work() -> None:
        dice = random.Random(7)
        while not over.is_set():
            victim = dice.choice(victims)
            victim.kill()
            over.wait(dice.uniform(0.0, 0.1))
            victim.start()
            over.wait(dice.uniform(0.0, 0.1))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_with_one_healthy_server_of_three_every_call_succeeds(replica):
    """Two are killed and restarted at random all the while; 1,000 calls from 8 threads, streams among them."""
    healthy, *victims = [replica(name) for name in ("healthy", "a", "b")]
    over = threading.Event()
    urls = [victims[0].url, healthy.url, victims[1].url]
    with Client(urls, model="m", dialect="vllm", timeout=Timeout(total=20)) as client:

        def call(number: int) -> str:
            time.sleep(0.02)  # so that the calls outlast some dozen kills
            return client.chat(f"{number}").text

        killer = killing(victims, over)
        try:
            with ThreadPoolExecutor(8) as pool:
                texts = list(pool.map(call, range(1000)))
        finally:
            over.set()
            killer.join()
        assert len(texts) == 1000
        assert set(texts) >= {"healthy"}
        assert set(texts) <= {"healthy", "a", "b"}
        failures = {status.url: status.failures for status in client.endpoints()}
        assert failures[victims[0].url] + failures[victims[1].url] > 0
        assert failures[healthy.url] == 0
        assert all(status.in_flight == 0 for status in client.endpoints())


async def test_async_calls_survive_killed_servers_too(replica):
    healthy, *victims = [replica(name) for name in ("healthy", "a", "b")]
    over = threading.Event()
    killer = killing(victims, over)
    try:
        async with AsyncClient(
            [victims[0].url, victims[1].url, healthy.url],
            model="m",
            dialect="vllm",
            timeout=Timeout(total=20),
        ) as client:
            for _ in range(10):
                await asyncio.sleep(0.05)
                answers = await asyncio.gather(*(client.chat(f"{i}") for i in range(30)))
                assert all(answer.text in ("healthy", "a", "b") for answer in answers)
    finally:
        over.set()
        await asyncio.to_thread(killer.join)


def test_a_replica_that_comes_back_gets_calls_again(replica):
    first, second = replica("first"), replica("second")
    with Client(
        [first.url, second.url], model="m", dialect="vllm", breaker=myllm.Breaker(cooldown=0.1, longest=0.2)
    ) as client:
        assert {client.chat("x").text for _ in range(4)} == {"first", "second"}
        first.kill()
        assert {client.chat("x").text for _ in range(6)} == {"second"}
        assert client.endpoints()[0].state == "open"
        first.start()
        time.sleep(0.25)
        assert {client.chat("x").text for _ in range(4)} == {"first", "second"}
        assert client.endpoints()[0].state == "closed"


def test_health_checks_find_a_death_and_a_return_before_a_call_does(replica):
    first, second = replica("first"), replica("second")
    with Client([first.url, second.url], model="m", dialect="vllm", health_interval=0.05) as client:
        client.chat("x")
        first.kill()
        wait_for(lambda: client.endpoints()[0].state == "open")
        failures = client.endpoints()[0].failures
        assert {client.chat("x").text for _ in range(4)} == {"second"}
        assert client.endpoints()[0].failures == failures  # no call ran into it
        first.start()
        wait_for(lambda: client.endpoints()[0].state == "closed")
    assert not [t for t in threading.enumerate() if t.name == "myllm-health" and alive_for(t, 1.0)]


def alive_for(thread: threading.Thread, seconds: float) -> bool:
    thread.join(seconds)
    return thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_ten_thousand_calls_leak_nothing(replica, kind):
    """In a process of their own, whose memory nobody else's doings change."""
    server = replica("x")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("many_calls.py"), kind, server.url],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_client_is_shared_by_32_threads(replica):
    server = replica("x")
    with Client(server.url, model="m", dialect="vllm", max_concurrency=16) as client:
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda i: client.chat(f"{i}").text, range(2000)))
        assert answers == ["x"] * 2000
        assert client.endpoints()[0].requests == 2000
        assert client.endpoints()[0].in_flight == 0


def test_an_async_client_is_used_from_four_loops_at_once(replica):
    server = replica("x")
    client = AsyncClient(server.url, model="m", dialect="vllm")

    def loop() -> list[str]:
        async def calls() -> list[str]:
            answers = [a.text for a in await asyncio.gather(*(client.chat("x") for _ in range(100)))]
            await client.close()
            return answers

        return asyncio.run(calls())

    with ThreadPoolExecutor(4) as pool:
        found = [future.result() for future in [pool.submit(loop) for _ in range(4)]]
    assert found == [["x"] * 100] * 4


def test_a_forked_child_does_not_share_its_parent_s_connections(replica):
    server = replica("x")
    with Client(server.url, model="m", dialect="vllm") as client:
        assert client.chat("x").text == "x"
        child = os.fork()
        if child == 0:  # pragma: no cover - the child's coverage is not collected
            good = False
            try:
                good = all(client.chat("x").text == "x" for _ in range(50))
            finally:
                os._exit(0 if good else 1)
        assert all(client.chat("x").text == "x" for _ in range(50))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nor_does_it_wait_for_places_that_its_parent_holds(replica):
    server = replica("x")
    with Client(server.url, model="m", dialect="vllm", max_concurrency=1, coalesce=True) as client:
        stream = client.stream_chat("x")  # holds the only place
        child = os.fork()
        if child == 0:  # pragma: no cover
            good = False
            try:
                good = client.chat("x", temperature=0, timeout=5).text == "x"
            finally:
                os._exit(0 if good else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert stream.final().text == "x"
