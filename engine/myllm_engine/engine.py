"""Run requests: the step loop (`Engine`) and its asynchronous front (`AsyncEngine`)."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from . import _wait_policy_came_late
from .batch import build_batch
from .config import EngineConfig
from .detokenizer import Detokenizer
from .errors import ContextLengthError, EngineError, InvalidRequestError, QueueFullError
from .loop import EngineLoop, OutputStream
from .models.load import choose_device, choose_dtype, load_model
from .models.source import resolve_model
from .request import CompletionOutput, Request, RequestOutput
from .runner import ModelRunner
from .sampler import SampledToken, derive_seed, sample
from .scheduler import Scheduler
from .sequence import PreparedRequest, Row, Sequence
from .structured import GrammarCompiler, allowed_tokens
from .tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)

_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Count what the engine holds at one moment, and what it has done since it started.

    Attributes:
        num_running: sequences that hold pages.
        num_waiting: sequences that wait for pages or for their turn.
        kv_pages_total: pages of the KV cache, the reserved one left out.
        kv_pages_free: those that no sequence holds.
        num_preemptions: times that a running sequence had to give up its pages.
        prompt_tokens_total: prompt tokens of the requests accepted.
        generation_tokens_total: tokens generated.
    """

    num_running: int
    num_waiting: int
    kv_pages_total: int
    kv_pages_free: int
    num_preemptions: int
    prompt_tokens_total: int
    generation_tokens_total: int


class Engine:
    """Run requests step by step, in the caller's thread; not safe to use from several threads at once.

    Args:
        config: what to load and how to run it.

    Raises:
        ModelLoadError: from the constructor; the model, its tokenizer or the KV cache does not work out.
    """

    def __init__(self, config: EngineConfig) -> None:
        started = time.perf_counter()
        if _wait_policy_came_late:
            logger.warning(
                "torch was imported before `myllm_engine`, too early to make OpenMP's threads sleep while "
                "they wait: on a busy CPU the engine can be ten times slower. Import `myllm_engine` first, "
                "or set OMP_WAIT_POLICY=PASSIVE in the environment."
            )
        self.config = config
        source = resolve_model(config.model)
        device = choose_device(config.device)
        loaded = load_model(config, source, device=device, dtype=choose_dtype(config.dtype, device))
        self.tokenizer: Tokenizer = load_tokenizer(config, source, eos_token_ids=loaded.eos_token_ids)
        self.model_name = loaded.name
        self.vocab_size = loaded.vocab_size
        budget = config.max_num_batched_tokens or max(_BATCHED_TOKENS[device.type], config.max_num_seqs)
        self._runner = ModelRunner(loaded, config, max_num_batched_tokens=budget)
        self.max_model_len = self._runner.max_model_len
        self.device = str(device)
        self.dtype = str(self._runner.dtype).removeprefix("torch.")
        self._scheduler = Scheduler(
            self._runner.pool, max_num_seqs=config.max_num_seqs, max_num_batched_tokens=budget
        )
        self._grammars = GrammarCompiler(self.tokenizer, self.vocab_size)
        self._requests: dict[str, list[Sequence]] = {}
        self._num_requests = 0
        self._prompt_tokens = 0
        self._generation_tokens = 0
        logger.info(
            "Loaded %s on %s in %s: context %d, KV cache of %d tokens, %.1f s",
            self.model_name,
            self.device,
            self.dtype,
            self.max_model_len,
            self._runner.pool.num_total * config.page_size,
            time.perf_counter() - started,
        )

    def validate(self, request: Request) -> None:
        """Check a request against the model; see `prepare`."""
        self.prepare(request)

    def prepare(self, request: Request) -> PreparedRequest:
        """Check a request against the model and compile its constraint, which may take long.

        May be called from any thread.

        Raises:
            InvalidRequestError: a token id that the model does not have; an unenforceable constraint.
            ContextLengthError: prompt and completion are longer than the context.
        """
        params = request.params
        for name, ids in (
            ("prompt", request.prompt_token_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
        ):
            largest = max(ids, default=0)
            if largest >= self.vocab_size:
                raise InvalidRequestError(
                    f"`{name}` holds token id {largest}, but the vocabulary has {self.vocab_size} tokens",
                    param=name,
                )
        prompt_tokens = len(request.prompt_token_ids)
        if prompt_tokens + (params.max_tokens or 1) > self.max_model_len:
            raise ContextLengthError.for_model(
                prompt_tokens=prompt_tokens, max_tokens=params.max_tokens, limit=self.max_model_len
            )
        matcher = None if params.structured is None else self._grammars.matcher(params.structured)
        return PreparedRequest(request, matcher)

    def add_request(self, request: Request | PreparedRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: see `prepare`; or a request of this id is in flight.
        """
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        request = prepared.request
        if request.request_id in self._requests:
            raise InvalidRequestError(f"A request with the id {request.request_id!r} is in flight already")
        params = request.params
        seed = derive_seed(self.config.seed, self._num_requests) if params.seed is None else params.seed
        prompt_tokens = len(request.prompt_token_ids)
        limit = self.max_model_len
        if params.max_tokens is not None:
            limit = min(limit, prompt_tokens + params.max_tokens)
        sequences = [
            Sequence(
                request=request,
                index=index,
                seed=seed + index,
                max_total_tokens=limit,
                detokenizer=Detokenizer(
                    self.tokenizer,
                    prompt_token_ids=request.prompt_token_ids,
                    skip_special_tokens=params.skip_special_tokens,
                    stop=params.stop,
                    include_stop=params.include_stop_str_in_output,
                ),
                matcher=None if prepared.matcher is None else prepared.matcher.copy(),
            )
            for index in range(params.n)
        ]
        self._requests[request.request_id] = sequences
        for sequence in sequences:
            self._scheduler.add(sequence)
        self._num_requests += 1
        self._prompt_tokens += prompt_tokens

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and free its pages.

        Return its last output, or None when no such request is in flight.
        """
        sequences = self._requests.pop(request_id, None)
        if sequences is None:
            return None
        outputs = []
        for sequence in sequences:
            if sequence.finish_reason is None:
                sequence.finish_reason = "abort"
                self._scheduler.remove(sequence)
                text = sequence.detokenizer.finish()
                outputs.append(CompletionOutput(index=sequence.index, text=text, finish_reason="abort"))
        request = sequences[0].request
        return RequestOutput(request_id, request.prompt_token_ids, outputs, finished=True)

    def has_unfinished(self) -> bool:
        """Tell whether a step would do something."""
        return self._scheduler.has_unfinished()

    def step(self) -> list[RequestOutput]:
        """Run the model once over what the scheduler chooses; return what is new, one output per request.

        A request that cannot go on ends with an output whose `error` is set; the others do not notice.
        """
        scheduled = self._scheduler.schedule()
        if not scheduled:
            return []
        batch = build_batch(scheduled, page_size=self.config.page_size, device=self._runner.torch_device)
        logits = self._runner.forward(batch)
        for item in batch.scheduled:
            item.sequence.num_computed += item.num_tokens
        if not batch.sampled:
            return []
        rows = [Row(sequence) for sequence in batch.sampled]
        tokens = sample(logits, rows, allowed_tokens(rows), eos_token_ids=self.tokenizer.eos_token_ids)
        return self._collect(batch.sampled, tokens)

    def stats(self) -> EngineStats:
        """Return the counters of this moment; may be called from any thread."""
        pool = self._runner.pool
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            kv_pages_total=pool.num_total,
            kv_pages_free=pool.num_free,
            num_preemptions=self._scheduler.num_preemptions,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
        )

    def _collect(
        self, sequences: list[Sequence], tokens: list[SampledToken | EngineError]
    ) -> list[RequestOutput]:
        outputs: dict[str, RequestOutput] = {}
        for sequence, token in zip(sequences, tokens, strict=True):
            request = sequence.request
            if request.request_id not in self._requests:  # another of its sequences has just failed
                continue
            try:
                new = self._append(sequence, token)
            except EngineError as error:  # this request's alone, and no reason to end the others
                self.abort(request.request_id)
                outputs[request.request_id] = RequestOutput(
                    request.request_id, request.prompt_token_ids, [], finished=True, error=error
                )
                continue
            output = outputs.get(request.request_id)
            if output is None:
                output = RequestOutput(request.request_id, request.prompt_token_ids, [])
                outputs[request.request_id] = output
            output.outputs.append(new)
            if sequence.finish_reason is not None:
                self._scheduler.remove(sequence)
        self._generation_tokens += len(tokens)
        for request_id, output in outputs.items():
            output.outputs.sort(key=lambda item: item.index)
            if output.error is None and all(
                sequence.finish_reason is not None for sequence in self._requests[request_id]
            ):
                output.finished = True
                del self._requests[request_id]
        return list(outputs.values())

    def _append(self, sequence: Sequence, token: SampledToken | EngineError) -> CompletionOutput:
        if isinstance(token, EngineError):
            raise token
        new = sequence.append(token.token_id, self.tokenizer.eos_token_ids)
        if token.logprob is not None:
            new.logprobs = [token.logprob]
        return new


class AsyncEngine:
    """Run an `Engine` in a thread of its own, for any number of event loops.

    Args:
        config: what to load and how to run it.

    Attributes:
        config: as given.
        tokenizer: of the model.
        model_name: short name, such as "SmolLM2-135M-Instruct".
        max_model_len: tokens that prompt and completion may have together.
        vocab_size: width of the logits.
        device: such as "cpu" or "cuda:0".
        dtype: such as "bfloat16".

    Raises:
        ModelLoadError: from the constructor, which loads the model and blocks meanwhile.
    """

    def __init__(self, config: EngineConfig) -> None:
        engine = Engine(config)
        self.config = config
        self.tokenizer = engine.tokenizer
        self.model_name = engine.model_name
        self.max_model_len = engine.max_model_len
        self.vocab_size = engine.vocab_size
        self.device = engine.device
        self.dtype = engine.dtype
        self._engine = engine
        self._loop = EngineLoop(engine)
        # Also at interpreter exit: a thread inside torch while the interpreter goes down can crash the
        # process.
        self._finalizer = weakref.finalize(self, self._loop.close)

    @property
    def error(self) -> BaseException | None:
        """Return what ended the step loop; None while healthy."""
        return self._loop.error

    def validate(self, request: Request) -> None:
        """Check a request against the model; see `Engine.prepare`. May be called from any thread."""
        self._engine.validate(request)

    async def submit(self, request: Request) -> AsyncGenerator[RequestOutput]:
        """Queue a request and iterate over its outputs, the last of which has `finished` set.

        Closing the iterator, or cancelling the task that waits in it, aborts the request and frees its pages.
        A reader slower than the engine gets several steps' outputs joined to one.

        Raises:
            InvalidRequestError, ContextLengthError: see `Engine.prepare`, or `n` is more than may ever wait;
                nothing was queued.
            QueueFullError: `max_queue` sequences wait already.
            ConstraintError: the constraint became too complex to follow in the middle of the text.
            GenerationError: the model's logits for this request are not numbers that can be sampled from.
            EngineDeadError: the engine is closed or died, before or while the request ran.
        """
        if request.params.structured is None:
            prepared = self._engine.prepare(request)
        else:  # compiling takes from 1 ms to seconds, which neither the event loop nor the engine may wait
            prepared = await asyncio.to_thread(self._engine.prepare, request)
        self._check_queue(request)
        stream = OutputStream(request, asyncio.get_running_loop())
        self._loop.open(prepared, stream)
        try:
            while not stream.finished:
                yield await stream.get()
        finally:
            if not stream.finished:
                self._loop.abort(request.request_id, deliver=False)

    def abort(self, request_id: str) -> None:
        """End a request; its iterator gets a last output with the finish reason "abort".

        Unknown ids do nothing.
        """
        self._loop.abort(request_id, deliver=True)

    def stats(self) -> EngineStats:
        """Return the counters of this moment."""
        return self._engine.stats()

    def close(self) -> None:
        """Stop the thread after its current step; unfinished requests fail with EngineDeadError.

        May be repeated.
        """
        self._finalizer()

    def _check_queue(self, request: Request) -> None:
        limit = self.config.max_queue
        if limit is None:
            return
        room = self.config.max_num_seqs + limit
        if request.params.n > room:
            raise InvalidRequestError(
                f"`n` ({request.params.n}) must not be above {room}, the number of sequences that may run "
                f"and wait together (`max_num_seqs` {self.config.max_num_seqs} + `max_queue` {limit})",
                param="n",
            )
        unfinished = self._loop.num_sequences
        if unfinished + request.params.n > room:
            raise QueueFullError(
                f"{unfinished} sequences run or wait, and no more than {room} may "
                f"(`max_num_seqs` {self.config.max_num_seqs} + `max_queue` {limit}): try again later"
            )
