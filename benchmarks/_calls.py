"""Calls against the stub: what the benchmarks of the client and of the adapters share."""

from __future__ import annotations

import importlib.metadata
import socket
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from benchmarks._peers import Peer
from benchmarks._process import Ask, asker, python

OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""LiteLLM would fetch a price list at import."""


@contextmanager
def stub() -> Iterator[int]:
    """Run the stub in a process of its own, and give its port."""
    with python("-m", "benchmarks.stub") as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def round_trip(port: int, calls: int = 1000) -> float:
    """Return the median time in ms of one exchange with the stub: what no client can go below."""
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: stub\r\ncontent-length: 2\r\n\r\n{}"
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(calls):
            start = time.perf_counter()
            connection.sendall(request)
            connection.recv(65536)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


@contextmanager
def worker(name: str, url: str, environment: Mapping[str, str] | None = None) -> Iterator[Ask]:
    """Keep one peer in a process of its own, and give what has it measured."""
    told = {**OFFLINE, **(environment or {})}
    with python("-m", "benchmarks._worker", name, url, environment=told) as process:
        yield asker(name, process)


def installed(peers: Mapping[str, type[Peer]], names: Iterable[str], console: Console) -> Iterator[str]:
    """Yield those whose package is there, and say which are not."""
    for name in names:
        if present(peers[name].package):
            yield name
        else:
            console.print(f"{name} is not installed, and left out.")


def present(package: str) -> list[str]:
    """Return the package's name in a list, empty when it is not installed."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return []
    return [package]
