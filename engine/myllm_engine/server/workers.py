"""Do the slow parts of requests in threads: so many at once, and so many that wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .errors import Kind, Problem, ProblemError

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """Run functions in threads of their own, apart from asyncio's, which the event loop waits for at its end.

    Args:
        task: what the threads do, for messages and thread names: "read prompts".
        threads: calls that run at once.
        waiting: calls that may wait for a thread.
    """

    def __init__(self, task: str, *, threads: int, waiting: int) -> None:
        self._task = task
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=task.replace(" ", "-"))
        self._room = threading.BoundedSemaphore(threads + waiting)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `function` returns.

        Cancelled while it waits, a call never runs; one that runs already goes on to its end and keeps its
        thread until then, for nothing can stop a thread.

        Raises:
            ProblemError: too many calls wait already.
        """
        if not self._room.acquire(blocking=False):
            raise ProblemError(
                Problem(
                    Kind.OVERLOADED,
                    f"The threads that {self._task} are busy, and too many requests wait for them: "
                    "try again later",
                    headers={"Retry-After": "1"},
                )
            )
        try:
            future = self._executor.submit(function, *args, **kwargs)
        except BaseException:  # closed
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what waits, and let the threads end with what they do; does not wait for them."""
        self._executor.shutdown(wait=False, cancel_futures=True)
