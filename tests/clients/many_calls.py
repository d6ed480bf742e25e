"""Make 10,000 calls, and fail where sockets, threads, tasks or memory are not what they were after the first ones.

python many_calls.py sync|async URL
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading

import psutil

from myllm import AsyncClient, Client


def resources() -> tuple[int, int]:
    gc.collect()
    process = psutil.Process(os.getpid())
    return process.num_fds(), threading.active_count()


def many_calls(url: str) -> None:
    """Sockets, threads and memory are after 10,000 calls what they were after the first 500."""
    with Client(url, model="m", dialect="vllm") as client:

        def calls(count: int) -> None:
            for number in range(count):
                if number % 20 == 0:
                    with client.stream_chat("x") as stream:
                        if number % 40:
                            stream.final()  # the others are left half read
                else:
                    client.chat("x", temperature=0)

        calls(500)
        before, memory = resources(), psutil.Process().memory_info().rss
        calls(10_000)
        assert resources() <= before
        assert psutil.Process().memory_info().rss - memory < 4 << 20
        assert client.endpoints()[0].in_flight == 0


async def many_async_calls(url: str) -> None:
    async with AsyncClient(url, model="m", dialect="vllm") as client:

        async def calls(count: int) -> None:
            async def some(n: int) -> None:
                for number in range(n):
                    if number % 20 == 0:
                        async with client.stream_chat("x") as stream:
                            if number % 40:
                                await stream.final()
                    else:
                        await client.chat("x", temperature=0)

            await asyncio.gather(*(some(count // 20) for _ in range(20)))

        await calls(1000)
        before, memory, tasks = resources(), psutil.Process().memory_info().rss, len(asyncio.all_tasks())
        await calls(10_000)
        await asyncio.sleep(0.1)
        assert resources() <= before
        assert psutil.Process().memory_info().rss - memory < 4 << 20
        assert len(asyncio.all_tasks()) == tasks
        assert client.endpoints()[0].in_flight == 0


if __name__ == "__main__":
    kind, url = sys.argv[1:]
    if kind == "sync":
        many_calls(url)
    else:
        asyncio.run(many_async_calls(url))
