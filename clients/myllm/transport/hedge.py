"""Hedged requests: when a server is slow, another one is asked too, and the first good answer wins.

"The Tail at Scale" (Dean and Barroso, 2013). The loser's connection is closed, so that its server stops.
"""

from __future__ import annotations

import asyncio
import queue
import threading

import httpcore

from ..wire import Reply, Send
from .http import AsyncHTTPTransport, HTTPTransport
from .network import Wire

_Result = Reply | Exception


class _Runner:
    """One of two racing requests, in a thread of its own; it can be called off."""

    def __init__(
        self, transport: HTTPTransport, send: Send, results: queue.SimpleQueue[tuple[_Runner, _Result]]
    ) -> None:
        self.send = send
        self._transport = transport
        self._results = results
        self._wire: Wire | None = None
        self._off = False
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name="myllm-hedge", daemon=True).start()

    def _work(self) -> None:
        result: _Result
        try:
            result = self._transport.send(self.send, self._watch)
        except Exception as exc:  # noqa: BLE001 - told to the caller of `send_hedged`
            result = exc
        self._results.put((self, result))

    def _watch(self, wire: Wire) -> None:
        """See each connection before the request goes out on it."""
        with self._lock:
            if self._off:
                raise httpcore.ConnectError("called off")
            self._wire = wire

    def call_off(self) -> None:
        """Close the connection, and let nothing more be sent."""
        with self._lock:
            self._off = True
            if self._wire is not None:
                self._wire.shut_down()


def send_hedged(transport: HTTPTransport, action: Send) -> Reply:
    """Send `action`, and its backup when that takes longer than `backup_after`; see `HTTPTransport.send`."""
    results: queue.SimpleQueue[tuple[_Runner, _Result]] = queue.SimpleQueue()
    runners = [_Runner(transport, action, results)]
    found: dict[_Runner, _Result] = {}

    def wait(seconds: float | None = None) -> None:
        runner, result = results.get(timeout=seconds)
        found[runner] = result

    try:
        try:
            wait(action.backup_after)
        except queue.Empty:
            if action.backup is not None and (backup := action.backup()) is not None:
                runners.append(_Runner(transport, backup, results))
        while len(found) < len(runners) and not any(map(_good, found.values())):
            wait()
    finally:
        for runner in runners:
            if runner not in found:
                runner.call_off()
    return _settled([(runner.send, found.get(runner)) for runner in runners])


async def async_send_hedged(transport: AsyncHTTPTransport, action: Send) -> Reply:
    """See `send_hedged`."""
    tasks = {asyncio.ensure_future(transport.send(action)): action}
    try:
        done, _ = await asyncio.wait(tasks, timeout=action.backup_after)
        if not done and action.backup is not None and (backup := action.backup()) is not None:
            tasks[asyncio.ensure_future(transport.send(backup))] = backup
        while len(done) < len(tasks) and not any(_good(_result(task)) for task in done):
            when = asyncio.ALL_COMPLETED if done else asyncio.FIRST_COMPLETED
            done, _ = await asyncio.wait(tasks, return_when=when)
        return _settled([(send, _result(task) if task.done() else None) for task, send in tasks.items()])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _result(task: asyncio.Task[Reply]) -> _Result:
    error = task.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error if error is not None else task.result()


def _good(result: _Result | None) -> bool:
    """Whether another server's answer would not be better: a success, or a mistake of the caller's."""
    return isinstance(result, Reply) and (result.status < 300 or result.status in (400, 413, 422))


def _settled(race: list[tuple[Send, _Result | None]]) -> Reply:
    """Return the first good reply, or what the first server said; tell the other how it lost."""
    winner = next((i for i, (_, result) in enumerate(race) if _good(result)), 0)
    for i, (send, result) in enumerate(race):
        if i != winner and send.lost is not None:
            send.lost(result)
    result = race[winner][1]
    if isinstance(result, Exception):
        raise result
    assert result is not None
    return result
