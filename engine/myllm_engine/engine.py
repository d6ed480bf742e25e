"""Run requests, step by step."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from . import _wait_policy_came_late
from .admission import Admission
from .batch import build_batch
from .beams import BeamHost
from .config import EngineConfig
from .delivery import Delivery, Step
from .models.load import choose_device, choose_dtype, load_model
from .models.peft import AdapterWeights
from .models.source import resolve_model
from .models.vision import ImageReader, load_image_reader
from .request import Request, RequestOutput
from .runner import ModelRunner
from .sampler import draw_tokens
from .scheduler import Scheduler
from .sequence import Matcher, PreparedRequest, Sequence
from .speculative import draft_forced, make_speculator
from .stats import EngineStats, StepStats
from .structured import GrammarCompiler, allowed_tokens
from .tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from .parallel import Workers

logger = logging.getLogger(__name__)

_BATCHED_TOKENS = {"cpu": 512, "cuda": 8192}
# Rows of logits that prompts may take in one step: each is as wide as the vocabulary.
_PROMPT_LOGITS = 256


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
        self._delivery = Delivery(self._scheduler, self.tokenizer.eos_token_ids, ended=self._free_loras)
        self.grammars = GrammarCompiler(self.tokenizer, self.vocab_size)
        self._admission = Admission(
            config,
            self.tokenizer,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            pool=self._runner.pool,
            lora=self._lora,
            grammars=self.grammars,
            sees=self.vision is not None,
        )
        self._beams = BeamHost(self._scheduler, self._runner.copy_page)
        # Several ranks get their input ids from this process.
        ahead = device.type == "cuda" if config.async_scheduling is None else config.async_scheduling
        self._runs_ahead = ahead and workers is None and config.speculative is None
        self._in_flight: Step | None = None
        self._num_requests = 0
        self._prompt_tokens = 0
        self.steps = StepStats()
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
        self.vision: ImageReader | None = load_image_reader(
            config, source, loaded.model.config, self.tokenizer
        )
        self.model_name = loaded.name
        self.vocab_size = loaded.vocab_size
        self.hidden_size = loaded.hidden_size
        self.generation_config = loaded.generation_config
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

        May be called from any thread; see `Admission.prepare`.
        """
        return self._admission.prepare(request, matcher)

    def add_request(self, request: Request | PreparedRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: see `Admission.prepare`; or a request of this id is in flight.
        """
        prepared = request if isinstance(request, PreparedRequest) else self.prepare(request)
        self._delivery.check_id(prepared.request.request_id)
        self._delivery.add(self._admission.make_group(prepared, self._num_requests, self._beams))
        self._num_requests += 1
        self._prompt_tokens += len(prepared.request.prompt_token_ids)

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
            self._lora.free({sequence.adapter for sequence in self._delivery.sequences})

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request and give its pages back.

        Return its last output, or None when no such request is in flight.
        """
        return self._delivery.abort(request_id)

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
        if not self._runs_ahead:  # drafts follow tokens that are known
            drawing = [item for item in self._scheduler.running if _draws_alone(item)]
            draft_forced(drawing)
            if self._speculator is not None:
                self._speculator.propose(drawing)
        launched = self._launch(previous)
        outputs = [] if previous is None else self._delivery.finish(previous)
        if launched is None:
            return outputs
        self._draw(launched)
        if self._runs_ahead:
            self._in_flight = launched
        else:
            outputs = self._delivery.finish(launched)
            if self._speculator is not None:
                self._speculator.observe(launched.batch, time.perf_counter() - started)
        self.steps.tokens.observe(len(launched.batch.positions))
        if launched.prefills:
            self.steps.prompts.observe(launched.prefills)
        seconds = self.steps.prefill_seconds if launched.prefills else self.steps.decode_seconds
        seconds.observe(time.perf_counter() - started)
        return outputs

    def _launch(self, previous: Step | None) -> Step | None:
        """Begin the forward pass of a step, behind what the device does; None when there is no work."""
        scheduled = self._scheduler.schedule(in_flight=previous is not None)
        if not scheduled:
            return None
        batch = build_batch(scheduled, page_size=self.config.page_size, device=self._runner.torch_device)
        if previous is not None and previous.drawn is not None:
            batch.input_ids[batch.pending_places] = previous.drawn.token_ids[batch.pending_rows]
        logits, hidden = self._runner.forward(batch)
        prefills = sum(
            item.sequence.num_computed < item.sequence.num_prompt_tokens for item in batch.scheduled
        )
        for item in batch.scheduled:
            item.sequence.num_computed += item.num_tokens
        for sequence, _, _ in batch.pooled:
            sequence.num_pooled = sequence.num_computed
        return Step(batch, prefills, logits, hidden)

    def _draw(self, launched: Step) -> None:
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
            generation_tokens_total=self._delivery.generation_tokens,
        )


def _draws_alone(sequence: Sequence) -> bool:
    """Tell whether a sequence's rows give its next tokens, where there are any: beams choose together."""
    return sequence.draws and not sequence.params.use_beam_search
