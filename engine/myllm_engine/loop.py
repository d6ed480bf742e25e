"""Run an engine in a thread of its own and carry its outputs to event loops."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol, TypeAlias

from .errors import EngineDeadError, EngineError, InvalidRequestError
from .request import Request, RequestOutput
from .sequence import PreparedRequest

logger = logging.getLogger(__name__)


# What the thread sends to a reader: an output, or the error that ends the stream.
_Item: TypeAlias = "tuple[Stream, RequestOutput | EngineError]"


class SteppedEngine(Protocol):
    """What the loop needs of an engine; used from the loop's thread only."""

    def add_request(self, request: PreparedRequest) -> None:
        """Queue a request."""

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and return its last output; None when it is not known."""

    def step(self) -> list[RequestOutput]:
        """Run the model once."""

    def has_unfinished(self) -> bool:
        """Tell whether a step would do something."""


class Stream(Protocol):
    """Take what one request gains.

    Attributes:
        request_id: of the request.
        num_sequences: of the request.
        loop: the event loop that `put` is called in; None: the engine's thread, which must not be held up.
    """

    request_id: str
    num_sequences: int
    loop: asyncio.AbstractEventLoop | None

    def put(self, item: RequestOutput | EngineError) -> None:
        """Add an output, or the error that ends the stream."""


class Observer(Protocol):
    """Be told of every request. What these methods raise is logged, and ends nothing else."""

    def accepted(self, request: Request) -> None:
        """Hear of a request that is sent to the engine; in the thread and context of its sender."""

    def delivered(self, outputs: Sequence[RequestOutput]) -> None:
        """Hear of what a step made, errors and aborts included; in the engine's thread."""

    def lost(self, request_ids: Sequence[str]) -> None:
        """Hear of requests that end without a last output: the engine took them not, or it died."""


class OutputStream:
    """Carry one request's outputs into one event loop. Every method runs in that event loop.

    What the reader has not fetched yet is kept as one output, which grows: a slow reader costs no memory per
    step and loses nothing.
    """

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = request.request_id
        self.num_sequences = request.params.num_sequences
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.finished = False
        self._pending: RequestOutput | None = None
        self._error: EngineError | None = None
        self._news = asyncio.Event()

    def put(self, item: RequestOutput | EngineError) -> None:
        """Add an output, or the error that ends the stream."""
        if isinstance(item, EngineError):
            self._error = item
        elif self._pending is None:
            self._pending = item
        else:
            self._pending.extend(item)
        self._news.set()

    async def get(self) -> RequestOutput:
        """Wait for what is new since the last call."""
        await self._news.wait()
        self._news.clear()
        # Text that arrived before the engine died is still handed out; the error comes with the next call.
        if self._pending is not None:
            output, self._pending = self._pending, None
            self.finished = output.finished
            if self._error is not None:
                self._news.set()
            return output
        self.finished = True
        if self._error is None:
            raise RuntimeError("`OutputStream` woke up with nothing to hand out")
        if not isinstance(self._error, EngineDeadError):
            raise self._error
        # Each reader gets an exception of its own: one object raised in several tasks mixes their tracebacks.
        raise EngineDeadError(str(self._error)) from self._error.__cause__


class EngineLoop:
    """Step an engine in a thread while it has work; sleep while it has none.

    Args:
        engine: stepped by the thread; nobody else may touch it from now on.

    Attributes:
        observers: are told of every request; replaced as a whole to change it.
        error: what ended the thread; None while healthy.
    """

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._streams: dict[str, Stream] = {}  # guarded by _wake
        # Whose outputs the engine makes: of a new request with the id of one whose reader has just left, the
        # engine may know nothing yet. Used by the thread alone.
        self._served: dict[str, Stream] = {}
        self._calls: list[Future[None]] = []  # guarded by _wake
        self._closing = False
        self.observers: tuple[Observer, ...] = ()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="myllm-engine", daemon=True)
        self._thread.start()

    @property
    def num_sequences(self) -> int:
        """Return how many sequences run or wait, those on their way to the engine included."""
        with self._wake:
            return sum(stream.num_sequences for stream in self._streams.values())

    def open(self, requests: Sequence[PreparedRequest], streams: Sequence[Stream]) -> None:
        """Send requests to the engine, all before the same step; the outputs of each go to its stream.

        Raises:
            EngineDeadError: the thread has ended.
            InvalidRequestError: a request of this id is in flight; none was sent.
        """
        with self._wake:
            if self._closing or self.error is not None:
                raise self._dead()
            ids: set[str] = set()
            for stream in streams:
                if stream.request_id in self._streams or stream.request_id in ids:
                    raise InvalidRequestError(
                        f"A request with the id {stream.request_id!r} is in flight already"
                    )
                ids.add(stream.request_id)
            for request, stream in zip(requests, streams, strict=True):
                self._streams[stream.request_id] = stream
                self._tell("accepted", request.request)
                self._inbox.append(partial(self._add, request, stream))
            self._wake.notify()

    def abort(self, request_id: str, *, deliver: bool) -> None:
        """End a request before the next step.

        With `deliver` its stream gets the last output, else nothing more.
        """
        with self._wake:
            stream = self._streams.get(request_id)
            if stream is None:
                return
            if not deliver:
                del self._streams[request_id]
            self._inbox.append(lambda: self._abort(request_id))
            self._wake.notify()

    def call(self, command: Callable[[], None]) -> None:
        """Run a command between two steps, in the engine's thread, and wait for its end.

        Raises:
            EngineError: what the command raises.
            EngineDeadError: the thread has ended, or does so before.
        """
        done: Future[None] = Future()
        with self._wake:
            if self._closing or self.error is not None:
                raise self._dead()
            self._calls.append(done)
            self._inbox.append(partial(self._call, command, done))
            self._wake.notify()
        done.result()

    def close(self) -> None:
        """End the thread after its current step; open streams fail with EngineDeadError."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._receive():
                if self._engine.has_unfinished():
                    self._deliver(self._engine.step())
        except BaseException as error:
            logger.exception("The engine's step loop died; all requests fail from now on")
            self.error = error
        with self._wake:
            dead = self._dead()
            streams = list(self._streams.values())
            self._streams.clear()
            self._inbox.clear()
            calls, self._calls = self._calls, []
        self._tell("lost", [stream.request_id for stream in streams])
        self._send([(stream, dead) for stream in streams])
        for done in calls:
            done.set_exception(dead)

    def _receive(self) -> bool:
        """Run what came in, waiting for something when the engine is idle.

        False when the thread shall end.
        """
        with self._wake:
            while not (self._closing or self._inbox or self._engine.has_unfinished()):
                self._wake.wait()
            if self._closing:
                return False
            inbox, self._inbox = self._inbox, deque()
        for command in inbox:
            command()
        return True

    def _call(self, command: Callable[[], None], done: Future[None]) -> None:
        error = None
        try:
            command()
        except EngineError as raised:  # the caller's fault, and no reason to end requests
            error = raised
        with self._wake:
            self._calls.remove(done)
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def _add(self, request: PreparedRequest, stream: Stream) -> None:
        try:
            self._engine.add_request(request)
        except EngineError as error:  # this request's fault, and no reason to end the others
            with self._wake:
                is_read = self._streams.get(stream.request_id) is stream
                if is_read:
                    del self._streams[stream.request_id]
            self._tell("lost", [stream.request_id])
            if is_read:
                self._send([(stream, error)])
        else:
            self._served[stream.request_id] = stream

    def _abort(self, request_id: str) -> None:
        output = self._engine.abort(request_id)
        if output is not None:
            self._deliver([output])

    def _tell(self, event: str, what: Any) -> None:
        for observer in self.observers:
            try:
                getattr(observer, event)(what)
            except Exception:  # who only looks must not end what he looks at
                logger.exception("An observer of the engine failed")

    def _deliver(self, outputs: list[RequestOutput]) -> None:
        self._tell("delivered", outputs)
        items: list[_Item] = []
        with self._wake:
            for output in outputs:
                stream = self._served[output.request_id]
                is_read = self._streams.get(output.request_id) is stream
                if output.finished:
                    del self._served[output.request_id]
                    if is_read:
                        del self._streams[output.request_id]
                if is_read:
                    items.append((stream, output if output.error is None else output.error))
        self._send(items)

    def _send(self, items: list[_Item]) -> None:
        """Wake each event loop once, with all that is for it."""
        by_loop: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
        for stream, item in items:
            if stream.loop is None:
                stream.put(item)
            else:
                by_loop.setdefault(stream.loop, []).append((stream, item))
        for loop, its_items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_put_all, its_items)
            except RuntimeError:  # the loop is closed: nobody is left to read these
                for stream, _ in its_items:
                    self.abort(stream.request_id, deliver=False)

    def _dead(self) -> EngineDeadError:
        if self.error is None:
            return EngineDeadError("The engine is closed")
        dead = EngineDeadError(
            f"The engine died of {type(self.error).__name__}: {self.error}; see its log, and restart it"
        )
        dead.__cause__ = self.error
        return dead


def _put_all(items: list[_Item]) -> None:
    for stream, item in items:
        stream.put(item)
