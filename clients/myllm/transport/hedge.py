"""Hedged requests: when a server is slow, another one is asked too, and the first good answer wins.

"The Tail at Scale" (Dean and Barroso, 2013). The loser's connection is closed, so that its server stops.
"""

from __future__ import annotations

import asyncio
import queue
import threading

from ..wire import Reply, Send
from .http import AsyncHTTPTransport, HTTPTransport
from .network import Wire

_Result = Reply | Exception


def send_hedged(transport: HTTPTransport, action: Send) -> Reply:
    """Send `action`, and its backup when that takes longer than `backup_after`; see `HTTPTransport.send`."""
    results: queue.SimpleQueue[tuple[int, _Result]] = queue.SimpleQueue()
    wires: list[list[Wire]] = []

    def start(send: Send) -> None:
        number, used = len(wires), list[Wire]()
        wires.append(used)

        def work() -> None:
            result: _Result
            try:
                result = transport.send(send, used.append)
            except Exception as exc:  # noqa: BLE001 - told to the caller below
                result = exc
            results.put((number, result))

        threading.Thread(target=work, name="myllm-hedge", daemon=True).start()

    start(action)
    found: dict[int, _Result] = {}
    try:
        try:
            number, result = results.get(timeout=action.backup_after)
            found[number] = result
        except queue.Empty:
            if action.backup is not None and (backup := action.backup()) is not None:
                start(backup)
        while len(found) < len(wires) and not any(map(_good, found.values())):
            number, result = results.get()
            found[number] = result
    finally:
        for number, used in enumerate(wires):
            if number not in found:
                for wire in used:
                    wire.shut_down()
    return _best(found)


async def async_send_hedged(transport: AsyncHTTPTransport, action: Send) -> Reply:
    """See `send_hedged`."""
    tasks = [asyncio.ensure_future(transport.send(action))]
    try:
        done, _ = await asyncio.wait(tasks, timeout=action.backup_after)
        if not done and action.backup is not None and (backup := action.backup()) is not None:
            tasks.append(asyncio.ensure_future(transport.send(backup)))
        while not (done and any(_good(_result(task)) for task in done)) and len(done) < len(tasks):
            done, _ = await asyncio.wait(tasks, return_when=_next(done))
        return _best({number: _result(task) for number, task in enumerate(tasks) if task.done()})
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _next(done: set[asyncio.Task[Reply]]) -> str:
    return asyncio.ALL_COMPLETED if done else asyncio.FIRST_COMPLETED


def _result(task: asyncio.Task[Reply]) -> _Result:
    error = task.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error if error is not None else task.result()


def _good(result: _Result) -> bool:
    return isinstance(result, Reply) and result.status < 500 and result.status != 429


def _best(found: dict[int, _Result]) -> Reply:
    """Return the first good reply; without one, what the first server said."""
    result = next(filter(_good, found.values()), found[min(found)])
    if isinstance(result, Exception):
        raise result
    return result
