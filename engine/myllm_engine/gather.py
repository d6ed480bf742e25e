"""Gather the outputs of many requests for a thread that waits until all have ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from .errors import EngineDeadError, EngineError
from .request import Request, RequestOutput


class Gathering:
    """Hold what requests have gained so far; filled by the engine's thread, read by one that waits.

    The waiting thread is woken when all have ended or one has failed, and not by every step.

    Args:
        requests: those to wait for.
        abort: ends a request that nobody waits for any more, by its id.

    Attributes:
        streams: where the engine's loop puts the outputs of each request, in order.
        num_finished: requests that have ended.
        prompt_tokens: of the prompts whose first output is there.
        generation_tokens: that all of them have gained.
    """

    def __init__(self, requests: Sequence[Request], *, abort: Callable[[str], None]) -> None:
        self.streams = [_Stream(request, self) for request in requests]
        self.num_finished = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self._abort = abort
        self._error: EngineError | None = None
        self._over = threading.Event()
        if not requests:
            self._over.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Return whether all have ended, waiting so long at most.

        Raises:
            EngineError: the first that one of them ended with.
        """
        over = self._over.wait(seconds)
        if isinstance(self._error, EngineDeadError):  # one object, for all requests of all threads
            raise EngineDeadError(str(self._error)) from self._error.__cause__
        if self._error is not None:
            raise self._error
        return over

    def results(self) -> list[RequestOutput]:
        """Return the whole output of each request, in order, when all have ended."""
        return [stream.output for stream in self.streams if stream.output is not None]

    def close(self) -> None:
        """Abort what still runs."""
        for stream in self.streams:
            if not stream.finished:
                self._abort(stream.request_id)

    def _add(self, stream: _Stream, item: RequestOutput | EngineError) -> None:
        """Take what a stream got; in the engine's thread."""
        if isinstance(item, EngineError):
            self._error = self._error or item
            self._over.set()
            return
        if stream.output is None:
            self.prompt_tokens += len(item.prompt_token_ids)
            stream.output = item
        else:
            stream.output.extend(item)
        self.generation_tokens += sum(len(output.token_ids) for output in item.outputs)
        if item.finished:
            stream.finished = True
            self.num_finished += 1
            if self.num_finished == len(self.streams):
                self._over.set()


class _Stream:
    """Take the outputs of one request; see `loop.Stream`."""

    loop = None  # in the engine's thread

    def __init__(self, request: Request, gathering: Gathering) -> None:
        self.request_id = request.request_id
        self.num_sequences = request.params.num_sequences
        self.finished = False
        self.output: RequestOutput | None = None
        self._gathering = gathering

    def put(self, item: RequestOutput | EngineError) -> None:
        """Add an output, or the error that ends the request."""
        self.finished = self.finished or isinstance(item, EngineError)
        self._gathering._add(self, item)
