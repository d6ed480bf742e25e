"""Keep the state of one token sequence while it runs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .detokenizer import Detokenizer
from .request import CompletionOutput, FinishReason, Repetition, Request, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .models.vision import ImageInputs
    from .sampling.bad_words import BadWords
    from .sampling.edits import LogitEdits


class Matcher(Protocol):
    """What a sequence needs of its grammar; see `structured.Matcher`."""

    def copy(self) -> Matcher:
        """Return a matcher at the same place, which goes on by itself."""

    def allowed(self) -> np.ndarray:
        """Return which tokens may come next, `[vocab_size]` bool; may raise ConstraintError."""

    def append(self, token_id: int) -> bool:
        """Follow a token; return whether the text is complete and can't go on; may raise ConstraintError."""


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """Hold a request that was checked against the model, with what may take long to make.

    Attributes:
        request: the request.
        matcher: its compiled constraint, to be copied for each sequence; None when it is free.
        bad_words: its forbidden words as tokens; None without any.
    """

    request: Request
    matcher: Matcher | None = None
    bad_words: BadWords | None = None


@dataclass(slots=True, eq=False)
class SeenImages:
    """Hold the images of a request, for all of its sequences.

    Attributes:
        inputs: what the model sees.
        features: what it makes of it, `[image tokens, hidden_size]`; None until a step reads some of it.
    """

    inputs: ImageInputs
    features: torch.Tensor | None = None


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """One of the `n` completions of a request.

    Attributes:
        request: the request it belongs to.
        index: which of the request's completions.
        seed: keys the sequence's random numbers.
        max_total_tokens: prompt and completion together end here.
        detokenizer: turns the completion's tokens into text.
        matcher: follows the completion through its grammar; None when it is free.
        bad_words: what may not occur in the completion; None: anything may.
        images: what stands at the prompt's image tokens; None: it has none.
        edits: what the sampler keeps of the sequence, which it makes when it first needs it.
        token_ids: prompt and completion so far.
        num_computed: leading tokens whose keys and values lie in `pages`.
        pages: KV pages held, in order.
        finish_reason: None while it runs.
        stop_reason: stop string or stop token id that ended it.
        arrival: orders it among those of the same priority.
        adapter: number of its LoRA adapter; 0: none.
        salt: what its keys in the prefix cache begin with.
        page_keys: of its whole pages; see `kv_cache.page_keys`.
        num_known_pages: leading pages that can be found by their keys.
        num_cached_tokens: prompt tokens that it found in the prefix cache; None until it is admitted.
        admitted: when that was, in seconds of `time.monotonic()`; None before.
        drafts: tokens that are proposed to follow, to be verified by the next step.
        num_pending: 1 while a token that was drawn is still on the device, and not in `token_ids`.
        pending_row: the row of the step in flight that it was drawn from.
        prompt_logprobs: of the prompt's tokens so far.
        pooled: sum of the hidden states of the prompt's tokens so far, or the last one's, `[hidden_size]`.
        num_pooled: prompt tokens that are in `pooled`.
    """

    request: Request
    index: int
    seed: int
    max_total_tokens: int
    detokenizer: Detokenizer
    matcher: Matcher | None = None
    bad_words: BadWords | None = None
    images: SeenImages | None = None
    edits: LogitEdits | None = field(default=None, init=False)
    token_ids: list[int] = field(init=False)
    num_computed: int = 0
    pages: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    arrival: int = 0
    adapter: int = 0
    salt: bytes = b""
    page_keys: list[bytes] = field(default_factory=list)
    num_known_pages: int = 0
    num_cached_tokens: int | None = None
    admitted: float | None = None
    drafts: list[int] = field(default_factory=list)
    num_pending: int = 0
    pending_row: int = 0
    prompt_logprobs: list[TokenLogprob | None] = field(default_factory=lambda: [None])
    pooled: torch.Tensor | None = None
    num_pooled: int = 0

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)

    @property
    def params(self) -> SamplingParams:
        """Return the request's sampling parameters."""
        return self.request.params

    @property
    def num_prompt_tokens(self) -> int:
        """Return the length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Return the length of the completion so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Return how many tokens the model has still to read; 1 while decoding."""
        known = len(self.token_ids) + self.num_pending
        if self.num_pending and known >= self.max_total_tokens:  # what is on its way is the last one
            return 0
        return known - self.num_computed

    @property
    def draws(self) -> bool:
        """Tell whether tokens are drawn for it: an embedding gets none, nor does a completion of none."""
        return self.request.pooling is None and self.max_total_tokens > self.num_prompt_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Tell whether log-probabilities of the prompt are still to be computed; the first sequence does."""
        wanted = self.params.prompt_logprobs is not None and self.index == 0
        return wanted and len(self.prompt_logprobs) < self.num_prompt_tokens

    @property
    def needs_every_token(self) -> bool:
        """Tell whether the model must read every token of the prompt, wherever its keys and values lie."""
        return self.wants_prompt_logprobs or self.request.pooling == "mean"

    def append(self, token_id: int, eos_token_ids: frozenset[int]) -> CompletionOutput:
        """Add a generated token, decide whether the sequence ends with it, and return what is new.

        Raises:
            ConstraintError: the constraint cannot follow the token, which is not added.
        """
        params = self.params
        complete = self.matcher is not None and self.matcher.append(token_id)
        self.token_ids.append(token_id)
        output = CompletionOutput(index=self.index, token_ids=[token_id])
        is_eos = token_id in eos_token_ids and not params.ignore_eos
        # Stop tokens and strings count only once `min_tokens` are there. EOS always does: before that it is
        # drawn only where a constraint leaves nothing else.
        check_stop = self.num_output_tokens > params.min_tokens
        if is_eos or (check_stop and token_id in params.stop_token_ids):
            self.finish_reason = "stop"
            self.stop_reason = None if is_eos else token_id
            # The text of the token that ended it is not part of the answer, unless asked for.
            if params.include_stop_str_in_output:
                output.text = self.detokenizer.append(token_id, check_stop=False)
        else:
            output.text = self.detokenizer.append(token_id, check_stop=check_stop)
            if self.detokenizer.stop_string is not None:
                self.finish_reason, self.stop_reason = "stop", self.detokenizer.stop_string
            elif complete:
                self.finish_reason = "stop"
            elif len(self.token_ids) >= self.max_total_tokens:
                self.finish_reason = "length"
            elif params.repetition is not None and check_stop and self._repeats(params.repetition):
                self.finish_reason, self.stop_reason = "repetition", "repetition_detected"  # vLLM's words
        if self.finish_reason is not None:
            output.text += self.detokenizer.finish()
        output.finish_reason, output.stop_reason = self.finish_reason, self.stop_reason
        return output

    def _repeats(self, repetition: Repetition) -> bool:
        longest = min(self.num_output_tokens, repetition.max_pattern_size * repetition.min_count)
        return repetition.found(self.token_ids[-longest:])


@dataclass(frozen=True, slots=True)
class Row:
    """Name the place that one row of logits belongs to: it tells what follows the tokens before it.

    Attributes:
        sequence: whose token is drawn.
        drafts: proposed tokens between `sequence.token_ids` and this place; empty without speculation.
        num_drafted: proposed tokens of the sequence in all, in this step.
    """

    sequence: Sequence
    drafts: tuple[int, ...] = ()
    num_drafted: int = 0

    @property
    def position(self) -> int:
        """Return the place in the sequence of the token to draw."""
        return len(self.sequence.token_ids) + len(self.drafts)

    @property
    def num_output_tokens(self) -> int:
        """Return how many tokens of the completion come before it."""
        return self.position - self.sequence.num_prompt_tokens
