"""Many streams at once, half of which are cut off: nobody else notices, and everything comes back."""

from __future__ import annotations

import asyncio
import json
import random
import time

import httpx
import psutil
import pytest

# Each with a length of its own, so that streams end at different steps.
KINDS = [
    {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    for prompt, max_tokens in (
        ("The lighthouse keeper climbed the stairs", 14),
        ("Once upon a time there was a", 6),
        ("def fibonacci(n):\n    ", 16),
        ("1, 2, 3, 4, 5,", 10),
        ("Q: What is the capital of France?\nA:", 12),
        ("El perro come una manzana y", 8),
    )
]


async def read(client: httpx.AsyncClient, body: dict, chunks: int | None = None) -> str:
    """Return the text of a stream; with `chunks`, close the connection after so many."""
    text = ""
    async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: "):
                text += json.loads(line[6:])["choices"][0]["text"]
                chunks = None if chunks is None else chunks - 1
                if chunks == 0:
                    return text
    raise AssertionError(f"the stream ended without [DONE], after {text!r}")


async def cut(client: httpx.AsyncClient, body: dict, chance: random.Random) -> None:
    """Go away at a random moment: after some chunks, or after some time, be it in the queue."""
    body = {**body, "max_tokens": 500}  # never over before it is cut
    if chance.random() < 0.5:
        await read(client, body, chunks=chance.randint(1, 12))
        return
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(chance.uniform(0.01, 2.0)):
            await read(client, body)


@pytest.mark.parametrize(
    "streams", [40, pytest.param(200, marks=pytest.mark.slow, id="200, which takes half a minute")]
)
async def test_half_of_the_streams_leave_and_the_others_are_right(live, streams):
    process, port = psutil.Process(), int(live.url.rpartition(":")[2])
    chance = random.Random(streams)
    assert idle(live.engine)
    async with httpx.AsyncClient(base_url=live.url, timeout=120) as client:
        alone = [await read(client, body) for body in KINDS]
    assert all(alone)
    await until(lambda: not connections(process, port))
    files = process.num_fds()

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url, timeout=120, limits=limits) as client:
        places = [number % len(KINDS) for number in range(streams // 2)]
        staying = [read(client, KINDS[place]) for place in places]
        leaving = [cut(client, KINDS[place], chance) for place in places]
        # Shuffled, so that who leaves stands between those who stay, in the queue and in the batch.
        tasks = [asyncio.ensure_future(each) for each in chance.sample(staying + leaving, streams)]
        peak = 0
        while not all(task.done() for task in tasks):
            peak = max(peak, len(connections(process, port)))
            await asyncio.sleep(0.1)
        texts = [task.result() for task in tasks if task.result() is not None]

    assert peak > streams * 0.7  # they really were there together
    assert sorted(texts) == sorted(alone[place] for place in places)
    await until(lambda: idle(live.engine))
    await until(lambda: not connections(process, port))
    await until(lambda: process.num_fds() <= files)


def idle(engine) -> bool:
    """Tell whether nothing runs, waits or holds a page."""
    stats = engine.stats()
    return (stats.num_running, stats.num_waiting, stats.kv_pages_free) == (0, 0, stats.kv_pages_total)


def connections(process: psutil.Process, port: int) -> list:
    """Return the server's ends of connections that are not closed; client and server are one process here."""
    return [
        each
        for each in process.net_connections("tcp")
        if each.laddr.port == port and each.status not in (psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT)
    ]


async def until(condition, seconds: float = 10) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come back"
        await asyncio.sleep(0.02)
