"""One peer in a process of its own, which measures it on command.

    python -m benchmarks._worker PEER URL

The methods of `Worker` are the commands; see `_process.obey`.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time

import psutil

from benchmarks._frameworks import ROUTES
from benchmarks._peers import PEERS, Peer
from benchmarks._process import obey
from benchmarks.stub import CHUNKS, STREAM_TEXT, TEXT

WARM_CALLS = 20


class Worker:
    """Measures one peer; each method is a command and returns figures."""

    def __init__(self, peer: Peer, runner: asyncio.Runner) -> None:
        self._peer = peer
        self._runner = runner
        self._warm: set[tuple[str, bool]] = set()

    def sequential(self, seconds: float) -> dict[str, float]:
        """Call after call, synchronously: the median latency, and the CPU time of a call."""
        for _ in range(WARM_CALLS):
            _check(self._peer.call(), TEXT)
        times = []
        cpu, now = time.process_time(), time.perf_counter()
        end = now + seconds
        while now < end:
            self._peer.call()
            before, now = now, time.perf_counter()
            times.append(now - before)
        cpu = time.process_time() - cpu
        return {"ms": statistics.median(times) * 1e3, "cpu_ms": cpu / len(times) * 1e3}

    def throughput(self, in_flight: int, seconds: float) -> dict[str, float]:
        """As many asynchronous calls as get done with so many in flight."""
        return self._runner.run(self._throughput(in_flight, seconds))

    async def _throughput(self, in_flight: int, seconds: float) -> dict[str, float]:
        # First open the connections: idle ones may have expired since the last round.
        for text in await asyncio.gather(*(self._peer.acall() for _ in range(max(in_flight, WARM_CALLS)))):
            _check(text, TEXT)
        calls = 0
        cpu, start = time.process_time(), time.perf_counter()

        async def lane() -> None:
            nonlocal calls
            while time.perf_counter() < start + seconds:
                await self._peer.acall()
                calls += 1

        await asyncio.gather(*(lane() for _ in range(in_flight)))
        elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"per_second": calls / elapsed, "cpu_ms": cpu / calls * 1e3}

    def stream(self, model: str, asynchronous: bool, seconds: float) -> dict[str, float]:
        """Stream after stream of many chunks: the median CPU and elapsed time of a chunk."""

        def read() -> str:
            if asynchronous:
                return self._runner.run(self._peer.astream(model))
            return self._peer.stream(model)

        if (model, asynchronous) not in self._warm:
            self._warm.add((model, asynchronous))
            read()
        taken = []
        end = time.perf_counter() + seconds
        while not taken or time.perf_counter() < end:
            cpu, start = time.process_time(), time.perf_counter()
            text = read()
            taken.append((time.process_time() - cpu, time.perf_counter() - start))
            _check(text, STREAM_TEXT)
        cpu, elapsed = (statistics.median(column) / CHUNKS * 1e6 for column in zip(*taken, strict=True))
        return {"cpu_us": cpu, "us": elapsed}

    def memory(self, calls: int) -> dict[str, float]:
        """What the process grows by over so many calls, in MB, after as many as it takes to settle."""
        self._repeat(WARM_CALLS * 10)
        before = _rss()
        self._repeat(calls)
        return {"growth_mb": _rss() - before}

    def _repeat(self, calls: int) -> None:
        if self._peer.has_sync:
            for _ in range(calls):
                self._peer.call()
        else:
            self._runner.run(self._repeat_async(calls))

    async def _repeat_async(self, calls: int) -> None:
        for _ in range(calls):
            await self._peer.acall()


def _check(text: str, wanted: str) -> None:
    if text != wanted:
        raise ValueError(f"the peer's answer is {text[:80]!r} ({len(text)} characters), not the stub's")


def _rss() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / 1e6


def main() -> None:
    """Obey until the standard input ends."""
    name, url = sys.argv[1:]
    peer = {**PEERS, **ROUTES}[name]
    with asyncio.Runner() as runner:
        obey(lambda: Worker(peer(url), runner))


if __name__ == "__main__":
    main()
