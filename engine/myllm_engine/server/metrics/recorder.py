"""Count what becomes of the engine's requests."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...request import Request, RequestOutput
from ...stats import DURATIONS, Histogram
from ..exchange import current

# Boundaries of vLLM's histograms (vllm/v1/metrics/buckets.py), which dashboards are drawn for.
# fmt: off
_LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)
_NEXT_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)
# fmt: on
_COUNTS = (1, 2, 5, 10, 20)


def _tokens(most: int) -> Histogram:
    """Return a histogram of numbers of tokens: 1, 2, 5, 10, … up to `most`."""
    bounds = [digit * 10**power for power in range(len(str(most))) for digit in (1, 2, 5)]
    return Histogram([bound for bound in bounds if bound <= most])


def _hundredths(most: int) -> Histogram:
    """Return a histogram of numbers of tokens, of a hundred equal buckets (TGI's)."""
    return Histogram([most * part / 100 for part in range(1, 101)])


@dataclass(slots=True)
class _Live:
    """Hold a request that the engine works at.

    Attributes:
        request: as it was sent to the engine.
        received: when the HTTP request came that it belongs to.
        latest: when each of its sequences gained its latest token.
        tokens: tokens of each of its sequences.
    """

    request: Request
    received: float
    latest: dict[int, float] = field(default_factory=dict)
    tokens: Counter[int] = field(default_factory=Counter)


class Recorder:
    """Observe the requests of an engine; see `loop.Observer`.

    A request here is one prompt, with all its completions. Times are of the requests that came to their end,
    by the clock of the engine's steps.

    Args:
        max_model_len: of the engine.

    Attributes:
        finished: completions, by finish reason; "abort" for those that a client left.
        prompt_tokens, generation_tokens, most_tokens: of a request's prompt, of each of its completions, and
            of its longest one.
        computed_tokens: of a prompt, those that no page held.
        n, max_tokens: the parameters of that name; `max_tokens` where it was given.
        first_token: from the HTTP request's arrival to the first token.
        next_token: between two steps that give a completion tokens.
        per_token: mean over a request's completions, the first token left out.
        whole: from the HTTP request's arrival to its end.
        validation: until the engine has it; queue: until its prompt is begun; prefill: until its first token;
            decode: to its last one; inference: both of these.
        skipped: tokens that a completion gained in a step beyond the one that a step makes.
        tgi_*: the same under TGI's boundaries.
    """

    def __init__(self, max_model_len: int) -> None:
        self._live: dict[str, _Live] = {}
        self.finished: Counter[str] = Counter(dict.fromkeys(("stop", "length", "abort"), 0))
        self.prompt_tokens = _tokens(max_model_len)
        self.generation_tokens = _tokens(max_model_len)
        self.most_tokens = _tokens(max_model_len)
        self.computed_tokens = _tokens(max_model_len)
        self.n = Histogram(_COUNTS)
        self.max_tokens = _tokens(max_model_len)
        self.first_token = Histogram(_FIRST_TOKEN)
        self.next_token = Histogram(_NEXT_TOKEN)
        self.per_token = Histogram(_NEXT_TOKEN)
        self.whole = Histogram(_LATENCY)
        self.queue = Histogram(_LATENCY)
        self.prefill = Histogram(_LATENCY)
        self.decode = Histogram(_LATENCY)
        self.inference = Histogram(_LATENCY)
        self.skipped = Histogram(range(17))
        self.tgi_input_length = _hundredths(max_model_len)
        self.tgi_max_new_tokens = _hundredths(max_model_len)
        self.tgi_generated_tokens = _hundredths(max_model_len)
        self.tgi_duration = Histogram(DURATIONS)
        self.tgi_validation = Histogram(DURATIONS)
        self.tgi_queue = Histogram(DURATIONS)
        self.tgi_inference = Histogram(DURATIONS)
        self.tgi_per_token = Histogram(DURATIONS)

    def accepted(self, request: Request) -> None:
        """Begin to follow a request."""
        exchange = current.get()
        received = time.monotonic() if exchange is None else exchange.started
        self._live[request.request_id] = _Live(request, received)

    def delivered(self, outputs: Sequence[RequestOutput]) -> None:
        """Count what a step gave."""
        now = time.monotonic()
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None:  # it was sent to the engine before this recorder was there
                continue
            self._gain(live, output, now)
            if output.finished:
                del self._live[output.request_id]
                if output.error is None:
                    self._finish(live, output, now)

    def lost(self, request_ids: Sequence[str]) -> None:
        """Forget requests that nothing will become of."""
        for request_id in request_ids:
            self._live.pop(request_id, None)

    def adapters(self) -> tuple[set[str], set[str]]:
        """Return the LoRA adapters of requests that have tokens, and of those that still wait for one."""
        running, waiting = set(), set()
        for live in list(self._live.values()):  # the engine's thread changes the original
            if live.request.lora is not None:
                (running if live.latest else waiting).add(live.request.lora)
        return running, waiting

    def _gain(self, live: _Live, output: RequestOutput, now: float) -> None:
        timings, params = output.timings, live.request.params
        # Else tokens are kept until it is known which completions are returned.
        is_stepwise = params.best_of is None and not params.use_beam_search
        for sequence in output.outputs:
            if sequence.token_ids:
                if not live.latest:
                    first = now if timings is None or timings.first_token is None else timings.first_token
                    self.first_token.observe(first - live.received)
                if sequence.index in live.latest:
                    self.next_token.observe(now - live.latest[sequence.index])
                live.latest[sequence.index] = now
                live.tokens[sequence.index] += len(sequence.token_ids)
                if is_stepwise:
                    self.skipped.observe(len(sequence.token_ids) - 1)
            if sequence.finish_reason is not None:
                self.finished[sequence.finish_reason] += 1

    def _finish(self, live: _Live, output: RequestOutput, now: float) -> None:
        if any(sequence.finish_reason == "abort" for sequence in output.outputs):
            return
        request, params = live.request, live.request.params
        if request.pooling is not None:
            self.finished["stop"] += 1
        prompt, completion = len(request.prompt_token_ids), live.tokens.total()
        self.prompt_tokens.observe(prompt)
        self.computed_tokens.observe(prompt - output.num_cached_tokens)
        self.tgi_input_length.observe(prompt)
        for index in range(0 if request.pooling else params.n):
            self.generation_tokens.observe(live.tokens[index])
        self.most_tokens.observe(max(live.tokens.values(), default=0))
        self.tgi_generated_tokens.observe(completion)
        self.n.observe(params.n)
        if params.max_tokens is not None:
            self.max_tokens.observe(params.max_tokens)
            self.tgi_max_new_tokens.observe(params.max_tokens)
        for histogram in (self.whole, self.tgi_duration):
            histogram.observe(now - live.received)
        timings = output.timings
        if timings is None or timings.scheduled is None:
            return
        first = now if timings.first_token is None else timings.first_token
        last = now if timings.last_token is None else timings.last_token
        for histogram in (self.queue, self.tgi_queue):
            histogram.observe(timings.scheduled - timings.queued)
        for histogram in (self.inference, self.tgi_inference):
            histogram.observe(last - timings.scheduled)
        self.prefill.observe(first - timings.scheduled)
        self.decode.observe(last - first)
        self.tgi_validation.observe(max(0.0, timings.queued - live.received))
        if completion > params.n:
            self.per_token.observe((last - first) / (completion / params.n - 1))
        if completion:
            self.tgi_per_token.observe((last - timings.scheduled) / completion)
