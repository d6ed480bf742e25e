"""Identical requests that are on their way at the same time share one answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any


class Coalescer:
    """Lets the first caller of a key work, and the others that come meanwhile wait for what it gets."""

    def __init__(self) -> None:
        self._running: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()

    def run(self, key: str, work: Callable[[], Any], timeout: float | None = None) -> Any:
        """Return `work()`, done here or by a caller that came first.

        Raises:
            TimeoutError: the other caller took longer than `timeout` seconds.
            what `work` raises, here or there.
        """
        while True:
            with self._lock:
                running = self._running.get(key)
                if running is None:
                    mine = self._running[key] = Future()
                    break
            try:
                return running.result(timeout)
            except CancelledError:
                continue  # that caller was interrupted, which is no answer for this one
        try:
            result = work()
        except Exception as exc:
            mine.set_exception(exc)
            raise
        except BaseException:
            mine.cancel()
            raise
        else:
            mine.set_result(result)
            return result
        finally:
            with self._lock:
                del self._running[key]


class AsyncCoalescer:
    """`Coalescer` for asyncio; each event loop shares among its own tasks."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, str], tuple[asyncio.Task[Any], list[None]]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """See `Coalescer.run`. The work ends when all that wait for it are cancelled."""
        place = (id(asyncio.get_running_loop()), key)
        if place not in self._running:
            task = asyncio.ensure_future(work())
            self._running[place] = task, []
            task.add_done_callback(lambda _: self._running.pop(place, None))
        task, waiting = self._running[place]
        waiting.append(None)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if len(waiting) == 1:
                task.cancel()
            raise
        finally:
            waiting.pop()
