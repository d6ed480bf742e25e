"""Describe what the bodies of OpenAI's completions and chat completions share, with vLLM's additions.

Types are checked here, ranges by `SamplingParams`: one place knows each rule.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from ...request import SamplingParams
from ..fields import StrictModel, refusal
from .constraints import ResponseFormat, StructuredOutputs, constraint

# Known to OpenAI or vLLM, not yet to us, with the values that ask for nothing special.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "cache_control": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "kv_transfer_params": (),
    "logits_processors": ([],),
    "logprob_token_ids": ([],),
    "repetition_detection": (),
    "request_id": (),
    "return_prompt_text": (False,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "stream_interval": (1,),
    "thinking_token_budget": (),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "vllm_xargs": (),
    "watermarking": (),
}

# Accepted without effect: they concern billing, storage and caches of a hosted service.
NO_EFFECT = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "user",
    }
)

_SAMPLING_FIELDS = (
    "allowed_token_ids",
    "bad_words",
    "early_stopping",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "length_penalty",
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


class GenerationRequest(StrictModel):
    """Hold what completions and chat completions have in common. A null is an absent field."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED
    no_effect: ClassVar[frozenset[str]] = NO_EFFECT

    model: str | None = Field(None, description="A served name; may be left out.")
    n: StrictInt | None = Field(None, le=128, description="Completions to make, 128 at most; default 1.")
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
    max_tokens: StrictInt | None = Field(None, description="Longest completion, in tokens.")
    allowed_token_ids: TokenIds | None = Field(None, description="The only tokens that may be generated.")
    bad_words: Texts | None = Field(None, description="Texts that may not occur in the answer.")
    use_beam_search: bool | None = Field(
        None, description="Search with `n` beams (completions: `best_of`); needs `temperature` 0; no streams."
    )
    length_penalty: float | None = Field(None, description="Exponent of the length in a beam's score.")
    early_stopping: Literal[True, False, "never"] | None = Field(None, description="When a beam search ends.")
    prompt_logprobs: StrictInt | None = Field(
        None,
        description="Log-probabilities of the prompt's tokens and of so many likely ones; no streams.",
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

    @property
    def include_usage(self) -> bool:
        """Tell whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """Tell whether every chunk carries the token counts; as in vLLM, `include_usage` is needed too."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Return the engine's parameters.

        Raises:
            InvalidRequestError: for a value out of range.
        """
        given = {name: getattr(self, name) for name in _SAMPLING_FIELDS if getattr(self, name) is not None}
        # OpenAI's range; vLLM clamps as well.
        bias = {token: min(100.0, max(-100.0, value)) for token, value in (self.logit_bias or {}).items()}
        guided = {name: getattr(self, name) for name in _GUIDED_FIELDS if getattr(self, name) is not None}
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
            logit_bias=bias,
            structured=constraint(self.response_format, self.structured_outputs, guided),
            **given,
        )
