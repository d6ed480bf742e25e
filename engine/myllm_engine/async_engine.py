"""Run an engine in a thread of its own, for any number of event loops and threads."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Protocol

from .config import EngineConfig
from .engine import Engine
from .errors import InvalidRequestError, QueueFullError
from .gather import Gathering
from .loop import EngineLoop, Observer, OutputStream
from .request import Request, RequestOutput
from .sequence import PreparedRequest
from .stats import EngineStats


class Closable(Protocol):
    """Be something that has an end."""

    def close(self) -> None:
        """End it; may be repeated."""


class AsyncEngine:
    """Run an `Engine` in a thread of its own, for any number of event loops and threads.

    Args:
        config: what to load and how to run it.

    Attributes:
        config: as given.
        tokenizer: of the model.
        vision: reads images for requests; None: the model sees none.
        model_name: short name, such as "SmolLM2-135M-Instruct".
        max_model_len: tokens that prompt and completion may have together.
        vocab_size: width of the logits.
        hidden_size: width of the hidden states, and of embeddings.
        device: such as "cpu" or "cuda:0".
        dtype: such as "bfloat16".
        generation_config: what the model's makers recommend, as its `generation_config.json` has it.
        steps: counts the engine's steps; only to be read.
        dependents: what is of no use without the engine: closed after it. Held weakly.

    Raises:
        ModelLoadError: from the constructor, which loads the model and blocks meanwhile.
    """

    def __init__(self, config: EngineConfig) -> None:
        engine = Engine(config)
        self.config = config
        self.tokenizer = engine.tokenizer
        self.vision = engine.vision
        self.model_name = engine.model_name
        self.max_model_len = engine.max_model_len
        self.vocab_size = engine.vocab_size
        self.hidden_size = engine.hidden_size
        self.device = engine.device
        self.dtype = engine.dtype
        self.generation_config = engine.generation_config
        self.steps = engine.steps
        self._engine = engine
        self._loop = EngineLoop(engine)
        self.dependents: weakref.WeakSet[Closable] = weakref.WeakSet()
        # Also at interpreter exit: a thread inside torch while the interpreter goes down can crash the
        # process.
        self._finalizer = weakref.finalize(self, _end, self._loop, engine)

    @property
    def error(self) -> BaseException | None:
        """Return what ended the step loop; None while healthy."""
        return self._loop.error

    def validate(self, request: Request) -> None:
        """Check a request against the model; see `Engine.prepare`. May be called from any thread."""
        self._engine.validate(request)

    async def prepare(self, request: Request) -> PreparedRequest:
        """Check a request against the model and compile its constraint, for which no thread here waits.

        Raises:
            InvalidRequestError, ContextLengthError, QueueFullError: see `Engine.prepare`.
        """
        structured, matcher = request.params.structured, None
        if structured is not None:
            matcher = await asyncio.wrap_future(self._engine.grammars.submit(structured))
        return self._engine.prepare(request, matcher)

    async def submit(self, request: Request) -> AsyncGenerator[RequestOutput]:
        """Queue a request and iterate over its outputs, the last of which has `finished` set.

        Closing the iterator, or cancelling the task that waits in it, aborts the request and frees its pages.
        A reader slower than the engine gets several steps' outputs joined to one.

        Raises:
            InvalidRequestError, ContextLengthError: see `Engine.prepare`, or `n` is more than may ever wait;
                nothing was queued.
            QueueFullError: `max_queue` sequences wait already, or many constraints to be compiled.
            ConstraintError: the constraint became too complex to follow in the middle of the text.
            GenerationError: the model's logits for this request are not numbers that can be sampled from.
            EngineDeadError: the engine is closed or died, before or while the request ran.
        """
        prepared = await self.prepare(request)
        self._check_queue(request)
        stream = OutputStream(request, asyncio.get_running_loop())
        self._loop.open([prepared], [stream])
        try:
            while not stream.finished:
                yield await stream.get()
        finally:
            if not stream.finished:
                self._loop.abort(request.request_id, deliver=False)

    def gather(self, requests: list[Request]) -> Gathering:
        """Queue requests together, for a thread that waits for all of them; close what is returned.

        `max_queue` does not limit them.

        Raises:
            InvalidRequestError, ContextLengthError: see `Engine.prepare`, for any; nothing was queued.
            EngineDeadError: the engine is closed or died.
        """
        prepared = [self._engine.prepare(request) for request in requests]
        gathering = Gathering(requests, abort=partial(self._loop.abort, deliver=False))
        self._loop.open(prepared, gathering.streams)
        return gathering

    def abort(self, request_id: str) -> None:
        """End a request; its iterator gets a last output with the finish reason "abort".

        Unknown ids do nothing.
        """
        self._loop.abort(request_id, deliver=True)

    @property
    def loras(self) -> Mapping[str, str]:
        """Return the LoRA adapters that requests may name: where each was read from, by name."""
        return self._engine.loras

    async def add_lora(self, name: str, path: str) -> None:
        """Load a LoRA adapter while requests run; see `Engine.add_lora`.

        Raises:
            EngineDeadError: the engine is closed or died.
        """
        await asyncio.to_thread(self.add_lora_blocking, name, path)

    def add_lora_blocking(self, name: str, path: str) -> None:
        """Do the same for a thread without an event loop."""
        weights = self._engine.read_lora(name, path)  # requests go on meanwhile
        self._loop.call(partial(self._engine.install_lora, name, weights))

    async def remove_lora(self, name: str) -> None:
        """Let no more requests name a LoRA adapter; see `Engine.remove_lora`.

        Raises:
            EngineDeadError: the engine is closed or died.
        """
        await asyncio.to_thread(self.remove_lora_blocking, name)

    def remove_lora_blocking(self, name: str) -> None:
        """Do the same for a thread without an event loop."""
        self._loop.call(partial(self._engine.remove_lora, name))

    def add_observer(self, observer: Observer) -> None:
        """Tell `observer` of every request from now on."""
        self._loop.observers = (*self._loop.observers, observer)

    def remove_observer(self, observer: Observer) -> None:
        """Tell `observer` nothing more; unknown ones do nothing."""
        self._loop.observers = tuple(item for item in self._loop.observers if item is not observer)

    def stats(self) -> EngineStats:
        """Return the counters of this moment."""
        return self._engine.stats()

    def close(self) -> None:
        """Stop the thread after its current step; unfinished requests fail with EngineDeadError.

        May be repeated.
        """
        self._finalizer()
        for dependent in list(self.dependents):
            dependent.close()

    def _check_queue(self, request: Request) -> None:
        limit = self.config.max_queue
        if limit is None:
            return
        room = self.config.max_num_seqs + limit
        count = request.params.num_sequences
        if count > room:
            name = "n" if request.params.best_of is None else "best_of"
            raise InvalidRequestError(
                f"`{name}` ({count}) must not be above {room}, the number of sequences that may run "
                f"and wait together (`max_num_seqs` {self.config.max_num_seqs} + `max_queue` {limit})",
                param=name,
            )
        unfinished = self._loop.num_sequences
        if unfinished + count > room:
            raise QueueFullError(
                f"{unfinished} sequences run or wait, and no more than {room} may "
                f"(`max_num_seqs` {self.config.max_num_seqs} + `max_queue` {limit}): try again later"
            )


def _end(loop: EngineLoop, engine: Engine) -> None:
    loop.close()
    engine.close()
