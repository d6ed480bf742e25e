"""Define what goes into the engine and what comes out.

Imports no torch, so that a server can start without it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from . import checks
from .checks import LARGEST
from .constraint import Structured
from .errors import EngineError, InvalidRequestError
from .repetition import Repetition

if TYPE_CHECKING:
    from .models.vision import ImageInputs

FinishReason = Literal["stop", "length", "abort", "repetition"]

_MAX_SEED = 2**63 - 1
# Below this a temperature is taken as 0 (as in vLLM): the quotients would leave float32's range.
_MIN_TEMPERATURE = 1e-5
_LARGEST_PENALTY = 1e6
# As OpenAI's.
_MAX_N = 128
# As vLLM's.
_MAX_LOGPROB_TOKEN_IDS = 128


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Say how the tokens of one request are chosen and when it ends.

    The order of work on a row of logits is that of vLLM and transformers: penalties and bias, temperature,
    top_k, top_p, min_p, typical_p, then the draw; a watermark comes first, as in TGI.

    Attributes:
        max_tokens: longest completion; None: up to the end of the context. With 0 the prompt is read, for
            `prompt_logprobs`, and the request ends.
        temperature: 0, or anything below 1e-5, is greedy decoding.
        top_k: sample among the k most likely tokens; 0 or -1: off.
        top_p: sample among the smallest set of tokens whose probabilities sum to at least `top_p`, in (0, 1].
        min_p: drop tokens less likely than `min_p` times the most likely one, in [0, 1].
        typical_p: locally typical sampling (arXiv:2202.00666), in (0, 1]; 1: off.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in prompt or
            completion (arXiv:1909.05858), in [1e-6, 1e6]; 1: off.
        frequency_penalty: subtracted once per occurrence in the completion, in [-2, 2].
        presence_penalty: subtracted once for a token that occurs in the completion, in [-2, 2].
        logit_bias: added to the logits, by token id, each in [-1e30, 1e30].
        allowed_token_ids: only these tokens may be generated (EOS only where it is among them); empty: all.
        bad_words: texts that may not occur in the completion: the token that would complete one, as the
            tokenizer writes it with or without a blank before it, is not drawn (as in vLLM). At most 1,024,
            of 65,536 characters together.
        watermark: mark the text, so that its tokens tell it from others (arXiv:2301.10226; see
            `sampling.watermark`).
        seed: makes the draws reproducible, whatever else runs, as far as the logits are equal (see
            `sampler`); sequence i of `n` uses `seed + i`.
        n: completions to return, at most 128.
        best_of: completions to make, of which the `n` with the highest mean log-probability a token are
            returned when all have ended; None: `n`.
        use_beam_search: return the `n` best of a beam search `best_of` (or `n`) beams wide, scored by the sum
            of log-probabilities over `length ** length_penalty` (as transformers and vLLM).
        length_penalty: exponent of the length in a beam's score; above 0 favours longer texts.
        early_stopping: of the beam search: True ends as soon as there are as many finished beams as it is
            wide, False when no better one is likely, "never" when none can be better (as transformers).
        stop: strings that end the completion; a single string is taken as one. At most 64, of 4096 characters
            together.
        stop_token_ids: tokens that end the completion, next to the model's EOS tokens.
        include_stop_str_in_output: keep the stop string (or the text of the stop token) at the end of the
            text.
        ignore_eos: go on after EOS tokens.
        min_tokens: before so many tokens EOS and `stop_token_ids` are chosen only where `structured` (or a
            `stop_token_ids` that holds them all) leaves nothing else, and neither `stop_token_ids` nor stop
            strings end the completion.
        skip_special_tokens: leave special tokens out of the text.
        logprobs: None: none; k: log-probability of the chosen token and of the k most likely ones, of the
            model's unmodified distribution (as vLLM's default).
        logprob_token_ids: tokens to report in place of the k most likely ones (needs `logprobs`), at most
            128; those of the prompt are reported as without it.
        prompt_logprobs: None: none; k: the same for each token of the prompt but the first.
        repetition: ends a completion that repeats itself; None: nothing does.
        structured: what the text must look like; None: anything. The completion ends when the text is
            complete; one that `max_tokens`, a stop string or a stop token cuts off may be incomplete.

    Raises:
        InvalidRequestError: from the constructor, with `param` set.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    allowed_token_ids: Sequence[int] = ()
    bad_words: Sequence[str] = ()
    watermark: bool = False
    seed: int | None = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    logprobs: int | None = None
    logprob_token_ids: Sequence[int] = ()
    prompt_logprobs: int | None = None
    repetition: Repetition | None = None
    structured: Structured | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            checks.check_int("max_tokens", self.max_tokens, low=0)
        checks.check_float("temperature", self.temperature, low=0.0, high=LARGEST)
        checks.check_int("top_k", self.top_k, low=-1)
        checks.check_float("top_p", self.top_p, low=0.0, high=1.0, open_low=True)
        checks.check_float("min_p", self.min_p, low=0.0, high=1.0)
        checks.check_float("typical_p", self.typical_p, low=0.0, high=1.0, open_low=True)
        checks.check_float(
            "repetition_penalty", self.repetition_penalty, low=1 / _LARGEST_PENALTY, high=_LARGEST_PENALTY
        )
        checks.check_float("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        checks.check_float("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        if self.seed is not None:
            checks.check_int("seed", self.seed, low=-_MAX_SEED - 1, high=_MAX_SEED)
        checks.check_int("n", self.n, low=1, high=_MAX_N)
        checks.check_int("min_tokens", self.min_tokens, low=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"`min_tokens` ({self.min_tokens}) must not be above `max_tokens` ({self.max_tokens})",
                param="min_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                checks.check_int(name, getattr(self, name), low=0)
        self._check_candidates()
        for name in (
            "include_stop_str_in_output",
            "ignore_eos",
            "skip_special_tokens",
            "use_beam_search",
            "watermark",
        ):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(
                    f"`{name}` must be a boolean; got {getattr(self, name)!r}", param=name
                )
        # A frozen dataclass is normalised through object.__setattr__: afterwards these have one type each.
        object.__setattr__(self, "stop", checks.stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", checks.token_ids("stop_token_ids", self.stop_token_ids))
        object.__setattr__(self, "logit_bias", checks.logit_bias(self.logit_bias))
        object.__setattr__(
            self, "allowed_token_ids", checks.token_ids("allowed_token_ids", self.allowed_token_ids)
        )
        object.__setattr__(self, "bad_words", checks.bad_words(self.bad_words))
        object.__setattr__(
            self, "logprob_token_ids", checks.token_ids("logprob_token_ids", self.logprob_token_ids)
        )
        self._check_logprob_token_ids()

    def _check_logprob_token_ids(self) -> None:
        if self.logprob_token_ids and self.logprobs is None:
            raise InvalidRequestError("`logprob_token_ids` needs `logprobs`", param="logprob_token_ids")
        if len(self.logprob_token_ids) > _MAX_LOGPROB_TOKEN_IDS:
            raise InvalidRequestError(
                f"`logprob_token_ids` may hold {_MAX_LOGPROB_TOKEN_IDS} token ids; got "
                f"{len(self.logprob_token_ids)}",
                param="logprob_token_ids",
            )

    def _check_candidates(self) -> None:
        """Check `best_of` and the beam search's parameters."""
        if self.best_of is not None:
            checks.check_int("best_of", self.best_of, low=self.n, high=_MAX_N)
        checks.check_float("length_penalty", self.length_penalty, low=-10.0, high=10.0)
        if self.early_stopping not in (True, False, "never"):
            raise InvalidRequestError(
                f"`early_stopping` must be true, false or 'never'; got {self.early_stopping!r}",
                param="early_stopping",
            )
        if self.use_beam_search and not self.greedy:
            raise InvalidRequestError(
                f"`temperature` must be 0 with `use_beam_search`, which draws nothing; got "
                f"{self.temperature!r}",
                param="temperature",
            )
        if self.use_beam_search and self.max_tokens == 0:
            raise InvalidRequestError(
                "`max_tokens` must be 1 or more with `use_beam_search`", param="max_tokens"
            )
        if self.use_beam_search and self.logprobs is not None:
            raise InvalidRequestError(
                "`logprobs` cannot be had with `use_beam_search`, whose texts are ranked as a whole",
                param="logprobs",
            )
        if self.num_sequences > self.n and self.greedy and not self.use_beam_search:
            raise InvalidRequestError(
                "`best_of` above `n` needs sampling or `use_beam_search`: greedy completions are all alike",
                param="best_of",
            )

    @property
    def num_sequences(self) -> int:
        """Return how many sequences the request runs."""
        return self.n if self.best_of is None else self.best_of

    @property
    def greedy(self) -> bool:
        """Tell whether the most likely token is always taken."""
        return self.temperature < _MIN_TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class Request:
    """Ask for the continuation of one prompt.

    Attributes:
        prompt_token_ids: the prompt; at least one token.
        params: see `SamplingParams`.
        request_id: unique among the requests in flight; made up when not given.
        priority: the lower, the sooner it runs and the later it is preempted (as in vLLM); among equals the
            earlier request comes first.
        lora: name of the LoRA adapter to use; None: the model as it is.
        cache_salt: requests share cached prefixes only with requests of the same salt.
        pooling: make an embedding of the prompt instead of a completion: "last" takes the hidden state of the
            last token, "mean" the mean over all tokens; either is normalised to length 1.
        images: what a model that sees images sees in the prompt, from `ImageReader` of the engine's `vision`.
    """

    prompt_token_ids: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    priority: int = 0
    lora: str | None = None
    cache_salt: str | None = None
    pooling: Literal["last", "mean"] | None = None
    images: ImageInputs | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise InvalidRequestError("The prompt is empty: it needs at least one token", param="prompt")
        object.__setattr__(self, "prompt_token_ids", list(checks.token_ids("prompt", self.prompt_token_ids)))
        checks.check_int("priority", self.priority, low=-_MAX_SEED - 1, high=_MAX_SEED)
        if self.pooling not in (None, "last", "mean"):
            raise InvalidRequestError(
                f"`pooling` must be 'last' or 'mean', or None for a completion; got {self.pooling!r}",
                param="pooling",
            )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one generated token under the model's unmodified distribution.

    Attributes:
        token_id: the chosen token.
        logprob: natural logarithm of its probability.
        rank: its rank by probability, 1 for the most likely.
        top: `(token_id, logprob)` of the most likely tokens, descending; as many as
            `SamplingParams.logprobs`, or those of `logprob_token_ids`.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class CompletionOutput:
    """Carry what one sequence gained since the previous output.

    Attributes:
        index: which of the request's `n` sequences.
        text: new text; may be empty while a character or a possible stop string is incomplete.
        token_ids: new tokens, the EOS or stop token included.
        logprobs: one entry per token of `token_ids`, or None when not asked for.
        finish_reason: None while it runs; "stop" (EOS, stop token or stop string), "length", "abort" or
            "repetition".
        stop_reason: the stop string or stop token id, "repetition_detected", or None; also for EOS None.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def extend(self, new: CompletionOutput) -> None:
        """Append a later output of the same sequence to this one."""
        self.text += new.text
        self.token_ids = self.token_ids + new.token_ids
        if new.logprobs is not None:
            self.logprobs = (self.logprobs or []) + new.logprobs
        if new.finish_reason is not None:
            self.finish_reason, self.stop_reason = new.finish_reason, new.stop_reason


@dataclass(slots=True)
class RequestTimings:
    """Tell when a request got how far, in seconds of `time.monotonic()`.

    The engine goes on writing to it until the request has ended.

    Attributes:
        queued: it came to the engine.
        scheduled: its prompt began to be computed; None while it waits.
        first_token: it gained its first token; None before.
        last_token: it gained its latest one; None before.
    """

    queued: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """Carry what a request gained since its previous output: an entry for each sequence that advanced.

    Attributes:
        request_id: of the request.
        prompt_token_ids: of the request.
        outputs: by ascending `index`.
        finished: True on the last output of the request.
        prompt_logprobs: an entry per prompt token, None for the first; on every output, when asked for.
        num_cached_tokens: prompt tokens whose keys and values were found in the prefix cache.
        embedding: `[hidden_size]`, of a request with `pooling`.
        timings: when it got how far; one object for all outputs of the request.
        error: why the request could not be brought to its end; None unless it failed. `AsyncEngine.submit`
            and `LLM` raise it.
    """

    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0
    embedding: list[float] | None = None
    timings: RequestTimings | None = field(default=None, compare=False)
    error: EngineError | None = None

    def extend(self, new: RequestOutput) -> None:
        """Append a later output of the same request to this one."""
        by_index = {output.index: output for output in self.outputs}
        for output in new.outputs:
            if output.index in by_index:
                by_index[output.index].extend(output)
            else:
                self.outputs.append(output)
        self.outputs.sort(key=lambda output: output.index)
        self.finished = self.finished or new.finished
        self.prompt_logprobs = new.prompt_logprobs or self.prompt_logprobs
        self.embedding = self.embedding or new.embedding
        self.timings = self.timings or new.timings
        self.num_cached_tokens = max(self.num_cached_tokens, new.num_cached_tokens)
        self.error = self.error or new.error
