"""Describe what the bodies of OpenAI's completions and chat completions share, with vLLM's additions.

Types are checked here, ranges by `SamplingParams`: one place knows each rule.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictInt, field_validator, model_validator

from ...repetition import Repetition
from ...request import SamplingParams
from ..errors import invalid
from ..fields import StrictModel, refusal
from ..settings import ServerContext, ServerSettings
from .constraints import ResponseFormat, StructuredOutputs, constraint

# Known to OpenAI or vLLM and not offered here, with the values that ask for nothing special.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "ec_transfer_params": (),
    "kv_transfer_params": (),
    "logits_processors": ([],),
    "vllm_xargs": ({},),
}

_NO_TRANSFER = "are not taken: this server neither sends its caches to other servers nor takes theirs"
REASONS: dict[str, str] = {
    "ec_transfer_params": _NO_TRANSFER,
    "kv_transfer_params": _NO_TRANSFER,
    "logits_processors": "are not taken: they name code that the server would run; use `logit_bias`, "
    "`bad_words` or `structured_outputs`",
    "vllm_xargs": "are not taken: this server has no extensions that would read them",
}

# Accepted without effect. Most concern billing, storage and caches of a hosted service;
# `guided_decoding_backend` chooses among libraries that enforce the same constraint, and there is one here;
# `spaces_between_special_tokens` acts on tokenizers written in Python, and there is none here; the others of
# vLLM act on its endpoints that render, and on data that it gives out only if its flags say so.
NO_EFFECT = frozenset(
    {
        "cache_control",
        "guided_decoding_backend",
        "metadata",
        "mm_payload",
        "prompt_cache_key",
        "prompt_cache_retention",
        "return_mm_kwargs",
        "return_token_offsets",
        "routed_experts_prompt_start",
        "safety_identifier",
        "service_tier",
        "session_id",
        "spaces_between_special_tokens",
        "store",
        "user",
    }
)

_SAMPLING_FIELDS = (
    "allowed_token_ids",
    "bad_words",
    "best_of",
    "early_stopping",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "length_penalty",
    "logprob_token_ids",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "use_beam_search",
)

_GUIDED_FIELDS = ("guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar")


# The first wrong item is told: a list of millions would take seconds to report in full.
TokenIds = Annotated[list[StrictInt], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]


def _check_bias(bias: Any) -> Any:
    """Refuse the first wrong entry; pydantic would report every one of a million."""
    for token, value in bias.items() if isinstance(bias, dict) else ():
        if not re.fullmatch(r"[0-9]{1,18}", str(token)):
            raise refusal(f"`logit_bias` keys must be token ids; got {str(token)[:50]!r}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refusal(f"`logit_bias` values must be numbers; got {str(value)[:50]!r}")
    return bias


class StreamOptions(StrictModel):
    """Say what a stream carries besides text."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})

    include_usage: bool | None = Field(None, description="End with a chunk that holds the token counts.")
    continuous_usage_stats: bool | None = Field(None, description="Put the token counts into every chunk.")


class RepetitionDetection(StrictModel):
    """Say, as vLLM does, when a text repeats itself and is ended."""

    max_pattern_size: StrictInt = Field(
        0, ge=0, description="Longest pattern, in tokens; 0: none is looked for."
    )
    min_pattern_size: StrictInt = Field(0, ge=0, description="Shortest pattern; 0 means 1.")
    min_count: StrictInt = Field(0, ge=0, description="How often it must come, one after the other.")

    def to_engine(self) -> Repetition | None:
        """Return what the engine looks for."""
        if self.max_pattern_size == 0:
            return None
        return Repetition(
            max_pattern_size=self.max_pattern_size,
            min_pattern_size=self.min_pattern_size or 1,
            min_count=self.min_count,
        )


class Truncation(StrictModel):
    """Let a request cut its prompt."""

    truncate_prompt_tokens: StrictInt | None = Field(
        None, description="Tokens of the prompt to keep; -1: as many as there is room for."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description='Where to cut: "left" keeps the last tokens, the default (embeddings: "right").'
    )

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _some_tokens(cls, count: int | None) -> int | None:
        if count is not None and count != -1 and count < 1:
            raise refusal(f"`truncate_prompt_tokens` must be 1 or more, or -1; got {count}")
        return count

    def truncate(
        self, token_ids: list[int], context: ServerContext, max_tokens: int | None, side: str = "left"
    ) -> list[int]:
        """Return the tokens of the prompt that are to be kept.

        Args:
            token_ids: of the whole prompt.
            context: of the server, whose limits count.
            max_tokens: of the completion, None: at least one; -1 leaves room for it.
            side: where to cut unless the request says.

        Raises:
            ProblemError: more are to be kept than the context has.
        """
        count, longest = self.truncate_prompt_tokens, context.engine.max_model_len
        if count is None:
            return token_ids
        if count > longest:
            raise invalid(
                f"`truncate_prompt_tokens` must not be above {longest}, this model's maximum context length; "
                f"got {count}",
                "truncate_prompt_tokens",
            )
        if count == -1:  # at least one, for whose request there is an error of its own
            room = max(1, longest - (1 if max_tokens is None else max_tokens))
            count = min(room, context.settings.max_input_tokens or room)
        return token_ids[-count:] if (self.truncation_side or side) == "left" else token_ids[:count]


class GenerationRequest(Truncation):
    """Hold what completions and chat completions have in common. A null is an absent field."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED
    reasons: ClassVar[dict[str, str]] = REASONS
    no_effect: ClassVar[frozenset[str]] = NO_EFFECT

    model: str | None = Field(None, description="A served name; may be left out.")
    n: StrictInt | None = Field(None, le=128, description="Completions to make, 128 at most; default 1.")
    best_of: StrictInt | None = Field(
        None, le=128, description="Make so many, return the `n` likeliest by token, when all have ended."
    )
    stream: bool | None = Field(None, description="Send the text as it is made; default false.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    temperature: float | None = Field(None, description="0 is greedy; default 1.")
    top_p: float | None = Field(None, description="In (0, 1]; default 1.")
    top_k: StrictInt | None = Field(None, description="0 or -1: off; the default.")
    min_p: float | None = Field(None, description="In [0, 1]; default 0.")
    typical_p: float | None = Field(None, description="In (0, 1]; default 1. Not in vLLM.")
    frequency_penalty: float | None = Field(None, description="In [-2, 2]; default 0.")
    presence_penalty: float | None = Field(None, description="In [-2, 2]; default 0.")
    repetition_penalty: float | None = Field(None, description="Above 0; counts the prompt too; default 1.")
    logit_bias: Annotated[
        dict[int, float] | None,
        BeforeValidator(_check_bias, json_schema_input_type=dict[str, float] | None),
    ] = Field(None, description="Added to the logits, by token id; clamped to [-100, 100].")
    seed: StrictInt | None = Field(None, description="Makes the answer reproducible.")
    stop: str | Texts | None = Field(None, description="Strings that end the text and are left out of it.")
    stop_token_ids: TokenIds | None = Field(None, description="Tokens that end the text.")
    include_stop_str_in_output: bool | None = Field(None, description="Leave the stop string in the text.")
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-sequence token.")
    min_tokens: StrictInt | None = Field(None, description="Tokens before which nothing ends the text.")
    max_tokens: StrictInt | None = Field(
        None, description="Longest completion, in tokens; 0 reads the prompt only."
    )
    repetition_detection: RepetitionDetection | None = Field(
        None, description="End a text that repeats itself."
    )
    allowed_token_ids: TokenIds | None = Field(None, description="The only tokens that may be generated.")
    bad_words: Texts | None = Field(None, description="Texts that may not occur in the answer.")
    use_beam_search: bool | None = Field(
        None, description="Search with `best_of` or else `n` beams; `temperature` is 0; no streams."
    )
    length_penalty: float | None = Field(None, description="Exponent of the length in a beam's score.")
    early_stopping: Literal[True, False, "never"] | None = Field(None, description="When a beam search ends.")
    prompt_logprobs: StrictInt | None = Field(
        None,
        description="Log-probabilities of the prompt's tokens and of so many likely ones; no streams.",
    )
    watermarking: bool | None = Field(None, description="Mark the text as TGI does (arXiv:2301.10226).")
    logprob_token_ids: TokenIds | None = Field(
        None, description="Give the log-probabilities of these tokens, not of likely ones; needs `logprobs`."
    )
    return_tokens_as_token_ids: bool | None = Field(
        None, description='Name tokens "token_id:5" in log-probabilities; default: as the server is set.'
    )
    return_token_ids: bool | None = Field(None, description="Give `prompt_token_ids` and `token_ids`, too.")
    return_prompt_text: bool | None = Field(None, description="Give the prompt as `prompt_text`, too.")
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Becomes part of the answer's id, unless the header X-Request-Id is there."
    )
    stream_interval: StrictInt | None = Field(
        None, ge=1, description="Tokens that a chunk gathers, but for the first and the last one; default 1."
    )
    priority: StrictInt | None = Field(None, description="The lower, the sooner it runs; default 0.")
    cache_salt: str | None = Field(
        None, min_length=1, description="Share cached prefixes only with requests of the same salt."
    )
    skip_special_tokens: bool | None = Field(None, description="Leave special tokens out; default true.")
    response_format: ResponseFormat | None = Field(
        None, description="Text, a JSON object, or by JSON Schema."
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's constraint on the text.")
    guided_json: dict[str, Any] | str | None = Field(None, description="vLLM's before 0.12: a JSON Schema.")
    guided_json_object: bool | None = Field(None, description="vLLM's before 0.12: any JSON object.")
    guided_regex: str | None = Field(None, description="vLLM's before 0.12: a regular expression.")
    guided_choice: Texts | None = Field(None, description="vLLM's before 0.12: one of these texts.")
    guided_grammar: str | None = Field(None, description="vLLM's before 0.12: a grammar, Lark's or GBNF.")
    guided_whitespace_pattern: str | None = Field(
        None, description="vLLM's before 0.12: what may stand between the parts of `guided_json`."
    )

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> GenerationRequest:
        if self.stream_options is not None and not self.stream:
            raise refusal("`stream_options` is only allowed with `stream`: true", "stream_options")
        return self

    @model_validator(mode="after")
    def _not_in_streams(self) -> GenerationRequest:
        if self.use_beam_search and self.stream:
            raise refusal("`use_beam_search` is not available with `stream`: true", "use_beam_search")
        if self.prompt_logprobs is not None and self.stream:
            raise refusal("`prompt_logprobs` are not available with `stream`: true", "prompt_logprobs")
        return self

    @model_validator(mode="after")
    def _beams_draw_nothing(self) -> GenerationRequest:
        # As in vLLM, and ahead of a default of the server's that would be refused.
        if self.use_beam_search and self.temperature is None:
            self.temperature = 0.0
        return self

    @property
    def include_usage(self) -> bool:
        """Tell whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Tell whether every chunk carries the token counts; as in vLLM, `include_usage` is needed too."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def asks_for_prompt(self) -> bool:
        """Tell whether the answer says something of the prompt, so that it needs no completion."""
        return self.prompt_logprobs is not None or bool(self.return_token_ids or self.return_prompt_text)

    def tokens_as_ids(self, settings: ServerSettings) -> bool:
        """Tell whether log-probabilities name tokens by their ids."""
        wanted = self.return_tokens_as_token_ids
        return settings.return_tokens_as_token_ids if wanted is None else wanted

    def sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Return the engine's parameters.

        Raises:
            InvalidRequestError, ProblemError: for a value out of range.
        """
        if max_tokens == 0 and not self.asks_for_prompt:
            raise invalid(
                "`max_tokens` 0 makes no text: ask for 1 or more, or for the prompt's tokens by "
                "`prompt_logprobs` (completions: `echo` with `logprobs`)",
                "max_tokens",
            )
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if getattr(self, name) is not None}
        # OpenAI's range; vLLM clamps as well.
        bias = {token: min(100.0, max(-100.0, value)) for token, value in (self.logit_bias or {}).items()}
        guided = {name: getattr(self, name) for name in _GUIDED_FIELDS if getattr(self, name) is not None}
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            logit_bias=bias,
            watermark=bool(self.watermarking),
            repetition=self.repetition_detection and self.repetition_detection.to_engine(),
            structured=constraint(
                self.response_format,
                self.structured_outputs,
                guided,
                guided_whitespace_pattern=self.guided_whitespace_pattern,
            ),
            **given,
        )
