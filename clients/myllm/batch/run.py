"""Many calls at once, results as they come or in order, never more than a window of them in memory."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from ..errors import InvalidParameterError
from .progress import reporting
from .request import AsyncCaller, BatchResult, check_shared, custom_id, read

R = TypeVar("R")
T = TypeVar("T")


def batch(
    make_client: Callable[[], AsyncCaller],
    requests: Iterable[Any],
    *,
    concurrency: int = 64,
    ordered: bool = True,
    progress: bool = False,
    **options: Any,
) -> Generator[BatchResult, None, None]:
    """Answer many requests and yield a `BatchResult` for each; one that fails does not stop the others.

    The calls run in an event loop of their own, in a thread: only there can a call that is on its way be
    cancelled, which is what leaving the loop early (or `close()`) does. `requests` are drawn in the caller's
    thread, a window ahead of the results, so that an endless generator is fine.

    Args:
        make_client: makes the asynchronous twin of the caller's client; called in that loop, and closed.
        requests: each a text or messages (a chat), call options with `messages`, `prompt` or `input`
            and maybe `custom_id`, or a line of OpenAI's batch format.
        concurrency: calls in flight; twice as many requests are in memory at most.
        ordered: results in the requests' order; False for the order in which they are answered.
        progress: show a bar on stderr.
        **options: parameters and call options of all requests that do not set them.

    Raises:
        InvalidParameterError: an option is not understood.
    """
    _check(requests, concurrency, options)
    return _batch(make_client, requests, concurrency, ordered, progress, options)


def abatch(
    client: AsyncCaller,
    requests: Iterable[Any] | AsyncIterable[Any],
    *,
    concurrency: int = 64,
    ordered: bool = True,
    progress: bool = False,
    **options: Any,
) -> AsyncGenerator[BatchResult, None]:
    """See `batch`; `requests` may be an asynchronous iterable too.

    Whoever leaves the `async for` early and keeps the generator should `aclose()` it
    (`contextlib.aclosing`): Python closes it only when nobody holds it any more.
    """
    _check(requests, concurrency, options)
    return _abatch(client, requests, concurrency, ordered, progress, options)


def _check(requests: Any, concurrency: int, options: Mapping[str, Any]) -> None:
    if isinstance(requests, str | bytes | Mapping):
        raise InvalidParameterError(
            "`requests` is a single request: give a list of them, or another iterable.", param="requests"
        )
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidParameterError(
            f"`concurrency={concurrency!r}` must be a whole number, 1 or more.", param="concurrency"
        )
    check_shared(options)


async def _answer(client: AsyncCaller, index: int, request: Any, options: Mapping[str, Any]) -> BatchResult:
    name = custom_id(request)
    try:
        return BatchResult(index=index, custom_id=name, answer=await read(request, options).send(client))
    except Exception as exc:  # noqa: BLE001 - handed on: one failed request must not end the batch
        return BatchResult(index=index, custom_id=name, error=exc)


class Window:
    """Futures of results in the order in which they are due: that of the jobs, or of their completion.

    A job is an asyncio task or a `concurrent.futures.Future`. With `new_slot` (which makes a future of the
    same sort) every job adds an empty slot, and the first one to finish fills the first slot.
    """

    def __init__(self, size: int, new_slot: Callable[[], Any] | None) -> None:
        self._size = size
        self._new_slot = new_slot
        self._due: deque[Any] = deque()
        self._empty: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, job: Any) -> None:
        """Take in a job."""
        if self._new_slot is None:
            self._due.append(job)
            return
        slot = self._new_slot()
        self._due.append(slot)
        self._empty.append(slot)
        job.add_done_callback(self._fill)

    def _fill(self, job: Any) -> None:
        if job.cancelled():
            return  # nobody waits for the slots any more
        slot = self._empty.popleft()
        if (error := job.exception()) is not None:
            slot.set_exception(error)
        else:
            slot.set_result(job.result())

    @property
    def ready(self) -> bool:
        """Whether it is time to hand a result on: one is there, or the window is full."""
        return len(self._due) >= self._size or self._due[0].done()

    def pop(self) -> Any:
        """Return the future that is due next."""
        return self._due.popleft()

    def discard(self) -> None:
        """Drop what is left, errors too, which asyncio would otherwise complain of."""
        for future in self._due:
            if future.done() and not future.cancelled():
                future.exception()
        self._due.clear()


async def windowed(
    requests: Iterable[R] | AsyncIterable[R],
    work: Callable[[int, R], Awaitable[T]],
    *,
    concurrency: int,
    ordered: bool,
) -> AsyncGenerator[T, None]:
    """Yield the results of `work(index, request)`, `concurrency` at a time; an error ends it all."""
    gate = asyncio.Semaphore(concurrency)
    tasks: set[asyncio.Task[T]] = set()
    window = Window(2 * concurrency, None if ordered else asyncio.get_running_loop().create_future)

    async def run(index: int, request: R) -> T:
        async with gate:
            return await work(index, request)

    try:
        async for index, request in _numbered(requests):
            task = asyncio.create_task(run(index, request))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            window.add(task)
            await asyncio.sleep(0)  # lets it start, though `requests` may never wait
            if window.ready:
                yield await window.pop()
        while window:
            yield await window.pop()
    finally:
        running = list(tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        window.discard()


async def _numbered(requests: Iterable[R] | AsyncIterable[R]) -> AsyncIterator[tuple[int, R]]:
    index = 0
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield index, request
            index += 1
    else:
        for request in requests:
            yield index, request
            index += 1


async def _abatch(
    client: AsyncCaller,
    requests: Iterable[Any] | AsyncIterable[Any],
    concurrency: int,
    ordered: bool,
    progress: bool,
    options: Mapping[str, Any],
) -> AsyncGenerator[BatchResult, None]:
    async def work(index: int, request: Any) -> BatchResult:
        return await _answer(client, index, request, options)

    results = windowed(requests, work, concurrency=concurrency, ordered=ordered)
    with reporting(_length(requests), shown=progress) as report:
        async with aclosing(results):
            async for result in results:
                report(result.error is not None)
                yield result


def _batch(
    make_client: Callable[[], AsyncCaller],
    requests: Iterable[Any],
    concurrency: int,
    ordered: bool,
    progress: bool,
    options: Mapping[str, Any],
) -> Generator[BatchResult, None, None]:
    gate = asyncio.Semaphore(concurrency)
    window = Window(2 * concurrency, None if ordered else Future)

    async def run(index: int, request: Any) -> BatchResult:
        async with gate:
            return await _answer(client, index, request, options)

    with _background(make_client) as (loop, client), reporting(_length(requests), shown=progress) as report:
        for index, request in enumerate(requests):
            window.add(asyncio.run_coroutine_threadsafe(run(index, request), loop))
            if window.ready:
                result: BatchResult = window.pop().result()
                report(result.error is not None)
                yield result
        while window:
            result = window.pop().result()
            report(result.error is not None)
            yield result


@contextmanager
def _background(
    make_client: Callable[[], AsyncCaller],
) -> Iterator[tuple[asyncio.AbstractEventLoop, AsyncCaller]]:
    """Run an event loop with a client in a thread; at the end cancel what it does and close both."""
    started: Future[tuple[asyncio.AbstractEventLoop, AsyncCaller, asyncio.Event]] = Future()

    async def main() -> None:
        client = make_client()
        over = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), client, over))
        await over.wait()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await client.close()

    def target() -> None:
        try:
            asyncio.run(main())
        except BaseException as exc:
            if started.done():
                raise
            started.set_exception(exc)

    # A daemon, so that a generator that somebody forgot does not keep the program from ending.
    thread = threading.Thread(target=target, name="myllm-batch", daemon=True)
    thread.start()
    loop, client, over = started.result()
    try:
        yield loop, client
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


def _length(requests: Any) -> int | None:
    return len(requests) if isinstance(requests, Sized) else None
