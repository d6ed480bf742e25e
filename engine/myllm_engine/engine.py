"""Run requests: the step loop (`Engine`) and its asynchronous front (`AsyncEngine`)."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import _wait_policy_came_late
from .batch import Batch, build_batch
from .beams import BeamGroup
from .config import EngineConfig
from .detokenizer import Detokenizer
from .errors import ConstraintError, ContextLengthError, EngineError, InvalidRequestError
from .groups import BestOfGroup, Group
from .models.load import choose_device, choose_dtype, load_model
from .models.peft import AdapterWeights
from .models.source import resolve_model
from .request import Request, RequestOutput, SamplingParams
from .runner import ModelRunner
from .sampler import DrawnTokens, SampledToken, derive_seed, draw_tokens, prompt_logprobs
from .sampling.bad_words import BadWords
from .sampling.edits import edit_logits
from .scheduler import Scheduler
from .sequence import Matcher, PreparedRequest, Sequence
from .speculative import make_speculator
from .structured import GrammarCompiler, allowed_tokens
from .tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from .parallel import Workers

logger = logging.getLogger(__name__)

_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
# Rows of logits that prompts may take in one step: each is as wide as the vocabulary.
_PROMPT_LOGITS = 256


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Count what the engine holds at one moment, and what it has done since it started.

    Attributes:
        num_running: sequences that hold pages.
        num_waiting: sequences that wait for pages or for their turn.
        kv_pages_total: pages of the KV cache, the reserved one left out.
        kv_pages_free: those that no sequence holds; they may hold cached prefixes.
        num_preemptions: times that a running sequence had to give up its pages.
        prefix_queried_tokens_total: prompt tokens that were looked up in the prefix cache.
        prefix_cached_tokens_total: those that were found.
        draft_tokens_total: tokens that speculation proposed.
        accepted_tokens_total: those that were right.
        prompt_tokens_total: prompt tokens of the requests accepted.
        generation_tokens_total: tokens generated.
    """

    num_running: int
    num_waiting: int
    kv_pages_total: int
    kv_pages_free: int
    num_preemptions: int
    prefix_queried_tokens_total: int
    prefix_cached_tokens_total: int
    draft_tokens_total: int
    accepted_tokens_total: int
    prompt_tokens_total: int
    generation_tokens_total: int


@dataclass(slots=True)
class _Launched:
    """Hold a step that the device works at, or has done."""

    batch: Batch
    logits: torch.Tensor
    hidden: torch.Tensor | None
    allowed: list[np.ndarray | ConstraintError | None] = dataclasses.field(default_factory=list)
    drawn: DrawnTokens | None = None


class Engine:
    """Run requests step by step, in the caller's thread; not safe to use from several threads at once.

    Args:
        config: what to load and how to run it.

    Raises:
        ModelLoadError: from the constructor; the model, its tokenizer, a LoRA adapter or the KV cache does
            not work out.
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
        device = choose_device(config.device)
        dtype = choose_dtype(config.dtype, device)
        budget = config.max_num_batched_tokens or max(_BATCHED_TOKENS[device.type], config.max_num_seqs)
        workers = None
        if config.tensor_parallel_size > 1:
            from .parallel import Workers

            workers = Workers(config, dtype=dtype, max_num_batched_tokens=budget)
            device = workers.device
        try:
            self._load(device, dtype, budget, workers)
        except BaseException:
            if workers is not None:
                workers.kill()
            raise
        self.max_model_len = self._runner.max_model_len
        self.device = str(device)
        self.dtype = str(self._runner.dtype).removeprefix("torch.")
        self._scheduler = Scheduler(
            self._runner.pool,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=budget,
            max_num_logits=max(config.max_num_seqs, _PROMPT_LOGITS),
        )
        self.grammars = GrammarCompiler(self.tokenizer, self.vocab_size)
        self._groups: dict[str, Group] = {}
        # Several ranks get their input ids from this process.
        ahead = device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
        self._runs_ahead = ahead and workers is None and config.speculative is None
        self._in_flight: _Launched | None = None
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

    def _load(self, device: torch.device, dtype: torch.dtype, budget: int, workers: Workers | None) -> None:
        config = self.config
        source = resolve_model(config.model, revision=config.revision)
        loaded = load_model(config, source, device=device, dtype=dtype)
        self.tokenizer: Tokenizer = load_tokenizer(config, source, eos_token_ids=loaded.eos_token_ids)
        self.model_name = loaded.name
        self.vocab_size = loaded.vocab_size
        self._lora = loaded.lora
        for name, path in config.lora_adapters.items():
            self.add_lora(name, path)
        # First: the KV cache of the model itself takes what is left.
        self._speculator = make_speculator(config, self.tokenizer, device=device, dtype=dtype, budget=budget)
        if workers is None:
            self._runner = ModelRunner(loaded, config, max_num_batched_tokens=budget)
        else:
            self._runner = workers.runner(loaded, config, max_num_batched_tokens=budget)

    def validate(self, request: Request) -> None:
        """Check a request against the model; see `prepare`."""
        self.prepare(request)

    def prepare(self, request: Request, matcher: Matcher | None = None) -> PreparedRequest:
        """Check a request against the model and compile its constraint, which may take long.

        May be called from any thread.

        Args:
            request: to prepare.
            matcher: of its constraint, from `grammars`; None: it is compiled here.

        Raises:
            InvalidRequestError: a token id that the model does not have; an unenforceable constraint; a LoRA
                adapter that is not loaded.
            ContextLengthError: prompt and completion are longer than the context.
            QueueFullError: too many constraints wait to be compiled.
        """
        params = request.params
        for name, ids in (
            ("prompt", request.prompt_token_ids),
            ("stop_token_ids", params.stop_token_ids),
            ("logit_bias", params.logit_bias),
            ("allowed_token_ids", params.allowed_token_ids),
        ):
            largest = max(ids, default=0)
            if largest >= self.vocab_size:
                raise InvalidRequestError(
                    f"`{name}` holds token id {largest}, but the vocabulary has {self.vocab_size} tokens",
                    param=name,
                )
        prompt_tokens = len(request.prompt_token_ids)
        needed = 0 if request.pooling else (params.max_tokens or 1)
        if prompt_tokens + needed > self.max_model_len:
            raise ContextLengthError.for_model(
                prompt_tokens=prompt_tokens, max_tokens=params.max_tokens, limit=self.max_model_len
            )
        if params.use_beam_search:
            self._check_beams(prompt_tokens, params)
        self._lora.number(request.lora)
        if matcher is None and params.structured is not None:
            matcher = self.grammars.matcher(params.structured)
        bad_words = BadWords.tokenize(params.bad_words, self.tokenizer) if params.bad_words else None
        return PreparedRequest(request, matcher, bad_words)

    def _check_beams(self, prompt_tokens: int, params: SamplingParams) -> None:
        """Refuse a beam search whose beams could never all run at once."""
        width, pool = params.num_sequences, self._runner.pool
        longest = prompt_tokens + (params.max_tokens or self.max_model_len - prompt_tokens)
        needed = width * pool.pages_for(longest)
        if width > self.config.max_num_seqs or needed > pool.num_total:
            raise InvalidRequestError(
                f"A beam search of {width} beams of up to {longest} tokens may need {width} sequences and "
                f"{needed * pool.page_size} tokens of KV cache at once; this engine has "
                f"{self.config.max_num_seqs} and {pool.num_total * pool.page_size}: lower `best_of` (or `n`) "
                "or `max_tokens`",
                param="n" if params.best_of is None else "best_of",
            )

    def add_request(self, request: Request | PreparedRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: see `prepare`; or a request of this id is in flight.
        """
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        request = prepared.request
        if request.request_id in self._groups:
            raise InvalidRequestError(f"A request with the id {request.request_id!r} is in flight already")
        group = self._make_group(request, prepared)
        self._groups[request.request_id] = group
        for sequence in group.sequences:
            self._scheduler.add(sequence)
        self._num_requests += 1
        self._prompt_tokens += len(request.prompt_token_ids)

    def _make_group(self, request: Request, prepared: PreparedRequest) -> Group:
        params = request.params
        if params.use_beam_search:
            [root] = self._make_sequences(request, prepared, count=1)
            eos = self.tokenizer.eos_token_ids
            return BeamGroup(request, root, eos, fork=self._fork, remove=self._scheduler.remove)
        if request.pooling is not None or params.num_sequences == params.n:
            count = 1 if request.pooling else params.n
            return Group(request, self._make_sequences(request, prepared, count=count))
        # Ranking needs log-probabilities, whether or not the answer shows them.
        inner = _with_logprobs(request)
        return BestOfGroup(request, self._make_sequences(inner, prepared, count=params.num_sequences))

    def _fork(self, parent: Sequence, child: Sequence) -> None:
        pages = self._scheduler.fork(parent, child)
        if pages is not None:
            self._runner.copy_page(*pages)

    def _make_sequences(self, request: Request, prepared: PreparedRequest, *, count: int) -> list[Sequence]:
        params = request.params
        seed = derive_seed(self.config.seed, self._num_requests) if params.seed is None else params.seed
        limit = self.max_model_len
        if params.max_tokens is not None:
            limit = min(limit, len(request.prompt_token_ids) + params.max_tokens)
        adapter = self._lora.number(request.lora)
        return [
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
                adapter=adapter,
                salt=self._salt(request, adapter),
                bad_words=prepared.bad_words,
            )
            for index in range(count)
        ]

    def _salt(self, request: Request, adapter: int) -> bytes:
        """Return what the keys of a request's cached pages begin with: whoever shares it shares pages.

        Without prefix caching that is the request alone: its sequences begin alike.
        """
        owner = None if self.config.enable_prefix_caching else request.request_id
        return repr((adapter, request.cache_salt, owner)).encode()

    @property
    def loras(self) -> Mapping[str, str]:
        """Return the LoRA adapters that requests may name: where each was read from, by name.

        May be called from any thread.
        """
        return {name: adapter.path for name, adapter in self._lora.loaded.items()}

    def add_lora(self, name: str, path: str) -> None:
        """Load a LoRA adapter in PEFT's format, so that requests may name it.

        Args:
            name: for `Request.lora`.
            path: a folder, or a hub id.

        Raises:
            InvalidRequestError: one of this name is loaded, or no more than `max_loras` may be.
            ModelLoadError: it cannot be read, asks for what this engine does not compute, or is for another
                model.
        """
        self.install_lora(name, self.read_lora(name, path))

    def read_lora(self, name: str, path: str) -> AdapterWeights:
        """Read an adapter for `install_lora`, which may take long; see `add_lora`.

        May be called from any thread.
        """
        self._lora.check_name(name)
        return self._lora.read(path)

    def install_lora(self, name: str, weights: AdapterWeights) -> None:
        """Let requests name an adapter that `read_lora` has read."""
        self._lora.add(name, weights)

    def remove_lora(self, name: str) -> None:
        """Let no more requests name a LoRA adapter.

        Those in flight keep it to their end; its memory, and its place among `max_loras`, is free then.

        Raises:
            InvalidRequestError: no adapter of this name is loaded.
        """
        self._lora.remove(name)
        self._free_loras()

    def _free_loras(self) -> None:
        """Let go of removed adapters that no request uses any more."""
        if self._lora.has_removed:
            sequences = (item for group in self._groups.values() for item in group.sequences)
            self._lora.free({sequence.adapter for sequence in sequences})

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and give its pages back.

        Return its last output, or None when no such request is in flight.
        """
        group = self._groups.pop(request_id, None)
        if group is None:
            return None
        for sequence in group.sequences:
            if sequence.finish_reason is None:
                self._scheduler.remove(sequence)
        self._free_loras()
        outputs = group.abort()
        return RequestOutput(request_id, group.request.prompt_token_ids, outputs, finished=True)

    def close(self) -> None:
        """End the processes that share the model, if there are any; the engine cannot be used any more."""
        self._runner.close()

    def has_unfinished(self) -> bool:
        """Tell whether a step would do something."""
        return self._in_flight is not None or self._scheduler.has_unfinished()

    def step(self) -> list[RequestOutput]:
        """Run the model once over what the scheduler chooses; return what is new, one output per request.

        With `async_scheduling` the outputs are those of the step before, which the device has finished, or is
        about to: it works at the next step while their text is made.

        A request that cannot go on ends with an output whose `error` is set; the others do not notice.
        """
        started = time.perf_counter()
        previous, self._in_flight = self._in_flight, None
        if self._speculator is not None:
            self._speculator.propose(
                [
                    item
                    for item in self._scheduler.running
                    if item.matcher is None and not item.params.use_beam_search
                ]
            )
        launched = self._launch(previous)
        outputs = [] if previous is None else self._finish(previous)
        if launched is None:
            return outputs
        self._draw(launched)
        if self._runs_ahead:
            self._in_flight = launched
            return outputs
        outputs = self._finish(launched)
        if self._speculator is not None:
            self._speculator.observe(launched.batch, time.perf_counter() - started)
        return outputs

    def _launch(self, previous: _Launched | None) -> _Launched | None:
        """Begin the forward pass of a step, behind what the device does; None when there is no work."""
        scheduled = self._scheduler.schedule()
        if not scheduled:
            return None
        batch = build_batch(scheduled, page_size=self.config.page_size, device=self._runner.torch_device)
        if previous is not None and previous.drawn is not None:
            batch.input_ids[batch.pending_places] = previous.drawn.token_ids[batch.pending_rows]
        logits, hidden = self._runner.forward(batch)
        for item in batch.scheduled:
            item.sequence.num_computed += item.num_tokens
        for sequence, _, _ in batch.pooled:
            sequence.num_pooled = sequence.num_computed
        return _Launched(batch, logits, hidden)

    def _draw(self, launched: _Launched) -> None:
        """Begin to draw the tokens of a step; those of the step before are known."""
        rows = launched.batch.rows
        if not rows:
            return
        launched.allowed = allowed_tokens(rows)
        launched.drawn = draw_tokens(
            launched.logits[: len(rows)],
            rows,
            launched.allowed,
            eos_token_ids=self.tokenizer.eos_token_ids,
        )
        for place, row in enumerate(rows):
            if not row.sequence.params.use_beam_search:  # a beam's token is not chosen by its row alone
                row.sequence.num_pending, row.sequence.pending_row = 1, place

    def _finish(self, launched: _Launched) -> list[RequestOutput]:
        """Wait for a step, and give each request what is new."""
        batch = launched.batch
        outputs: dict[str, RequestOutput] = {}
        if batch.prompt_rows:
            self._keep_prompt_logprobs(batch, launched.logits)
        if launched.hidden is not None:
            self._pool(batch, launched.hidden, outputs)
        if launched.drawn is not None:
            self._collect(launched, launched.drawn.result(), outputs)
        return [output for output in outputs.values() if output.outputs or output.finished]

    def stats(self) -> EngineStats:
        """Return the counters of this moment; may be called from any thread."""
        pool, scheduler, speculator = self._runner.pool, self._scheduler, self._speculator
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            kv_pages_total=pool.num_total,
            kv_pages_free=pool.num_free,
            num_preemptions=scheduler.num_preemptions,
            prefix_queried_tokens_total=scheduler.num_queried_tokens,
            prefix_cached_tokens_total=scheduler.num_cached_tokens,
            draft_tokens_total=speculator.num_drafted if speculator else 0,
            accepted_tokens_total=speculator.num_accepted if speculator else 0,
            prompt_tokens_total=self._prompt_tokens,
            generation_tokens_total=self._generation_tokens,
        )

    def _keep_prompt_logprobs(self, batch: Batch, logits: torch.Tensor) -> None:
        start = len(batch.rows)
        for rows in batch.prompt_rows:
            end = start + len(rows.targets)
            count = rows.sequence.params.prompt_logprobs or 0
            rows.sequence.prompt_logprobs += prompt_logprobs(logits[start:end], rows.targets, count)
            start = end

    def _pool(self, batch: Batch, hidden: torch.Tensor, outputs: dict[str, RequestOutput]) -> None:
        """Add hidden states to the embeddings of their requests, and hand out those that are complete."""
        start = 0
        for sequence, count, complete in batch.pooled:
            total = hidden[start : start + count].float().sum(dim=0)
            start += count
            if sequence.finish_reason is not None:  # aborted meanwhile
                continue
            sequence.pooled = total if sequence.pooled is None else sequence.pooled + total
            if complete:
                sequence.finish_reason = "stop"
                output = self._output(sequence.request.request_id, outputs)
                # Sum and mean have one direction.
                output.embedding = torch.nn.functional.normalize(sequence.pooled, dim=0).tolist()
                self._scheduler.remove(sequence)
                self._close(output)

    def _collect(
        self,
        launched: _Launched,
        tokens: list[SampledToken | EngineError],
        outputs: dict[str, RequestOutput],
    ) -> None:
        """Give each sequence what was drawn for it."""
        rows, index = launched.batch.rows, 0
        while index < len(rows):
            place, sequence = index, rows[index].sequence
            index += rows[index].num_drafted + 1
            sequence.num_pending = 0
            group = self._groups.get(sequence.request.request_id)
            # It was aborted, or ended with the token before, which was not known when this one was drawn.
            if group is None or sequence.finish_reason is not None:
                continue
            before = len(sequence.token_ids)
            output = self._output(group.request.request_id, outputs)
            try:
                if isinstance(group, BeamGroup):
                    new = group.extend(sequence, self._log_probs(launched, place))
                    self._generation_tokens += 1
                else:
                    new = group.collect(sequence, tokens[place:index], self.tokenizer.eos_token_ids)
                    self._generation_tokens += len(sequence.token_ids) - before
            except EngineError as error:  # this request's alone, and no reason to end the others
                self.abort(group.request.request_id)
                output.outputs, output.error, output.finished = [], error, True
                continue
            output.outputs += new
            if sequence.finish_reason is not None and not isinstance(group, BeamGroup):
                self._scheduler.remove(sequence)
            if group.finished:
                self._close(output)

    def _log_probs(self, launched: _Launched, place: int) -> torch.Tensor:
        """Return the log-probabilities `[vocab_size]` of a beam's next token, under the request's limits.

        As in transformers, penalties and the like change log-probabilities, which are not normalised again.
        """
        allowed = launched.allowed[place]
        if isinstance(allowed, ConstraintError):
            raise allowed
        raw = torch.log_softmax(launched.logits[place : place + 1].float(), dim=-1)
        row = launched.batch.rows[place]
        return edit_logits(raw, [row], [allowed], eos_token_ids=self.tokenizer.eos_token_ids)[0]

    def _output(self, request_id: str, outputs: dict[str, RequestOutput]) -> RequestOutput:
        """Return the output of this step for a request, made when first asked for."""
        if request_id not in outputs:
            group = self._groups[request_id]
            first = group.first
            outputs[request_id] = RequestOutput(
                request_id,
                group.request.prompt_token_ids,
                [],
                num_cached_tokens=first.num_cached_tokens or 0,
                prompt_logprobs=None
                if group.request.params.prompt_logprobs is None
                else first.prompt_logprobs,
            )
        return outputs[request_id]

    def _close(self, output: RequestOutput) -> None:
        output.outputs.sort(key=lambda item: item.index)
        output.finished = True
        del self._groups[output.request_id]
        self._free_loras()


def _with_logprobs(request: Request) -> Request:
    logprobs = request.params.logprobs or 0
    return dataclasses.replace(request, params=dataclasses.replace(request.params, logprobs=logprobs))
