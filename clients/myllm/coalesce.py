"""Identical requests that are on their way at the same time share one answer."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from .errors import RequestTimeoutError


class Coalescer:
    """Lets the first caller of a key work, and the others that come meanwhile wait for what it gets.

    Each keeps its own deadline: one that comes to wait for a call with less time than it has itself works on
    its own when that one ran out.
    """

    def __init__(self) -> None:
        self._running: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def run(self, key: str, work: Callable[[], Any], timeout: float | None = None) -> Any:
        """Return `work()`, done here or by a caller that came first.

        Raises:
            RequestTimeoutError: the other caller took longer than `timeout` seconds.
            what `work` raises, here or there.
        """
        if self._pid != os.getpid():  # a fork's parent does not work for its child
            self._running, self._lock, self._pid = {}, threading.Lock(), os.getpid()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                running = self._running.get(key)
                if running is None:
                    mine = self._running[key] = Future()
                    break
            try:
                return running.result(_left(deadline))
            except CancelledError:
                continue  # that caller was interrupted, which is no answer for this one
            except TimeoutError as exc:
                if not running.done():
                    raise _late(timeout) from None
                if not _out_of_its_own_time(exc):
                    raise
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


@dataclass(eq=False)
class _Shared:
    """A task that several callers wait for."""

    task: asyncio.Task[Any]
    waiting: int = 0


class AsyncCoalescer:
    """`Coalescer` for asyncio; each event loop shares among its own tasks."""

    def __init__(self) -> None:
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]]
        self._loops = weakref.WeakKeyDictionary()

    async def run(
        self, key: str, work: Callable[[], Coroutine[Any, Any, Any]], timeout: float | None = None
    ) -> Any:
        """See `Coalescer.run`. The work is cancelled when all that wait for it are."""
        running = self._loops.setdefault(asyncio.get_running_loop(), {})
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            shared = running.get(key)
            mine = shared is None
            if shared is None:
                shared = running[key] = _Shared(asyncio.ensure_future(work()))
            shared.waiting += 1
            try:
                # The work keeps to the deadline of whoever began it by itself.
                async with asyncio.timeout(None if mine else _left(deadline)):
                    return await asyncio.shield(shared.task)
            except RequestTimeoutError as exc:
                if mine or not _out_of_its_own_time(exc):
                    raise
            except TimeoutError:
                raise _late(timeout) from None
            finally:
                shared.waiting -= 1
                if shared.task.done() or not shared.waiting:
                    if running.get(key) is shared:
                        del running[key]  # nobody may join what is about to be cancelled
                    shared.task.cancel()


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _out_of_its_own_time(error: BaseException) -> bool:
    return isinstance(error, RequestTimeoutError) and error.phase in ("total", "pool")


def _late(timeout: float | None) -> RequestTimeoutError:
    return RequestTimeoutError(
        f"The identical call that this one shares did not end before its deadline of {timeout:g} s.",
        phase="total",
    )
