"""Describe the bodies of OpenAI's API, with vLLM's additions.

Types are checked here, ranges by `SamplingParams`: one place knows each rule.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictInt, field_validator, model_validator

from ...request import SamplingParams
from ..fields import StrictModel, refusal
from .constraints import ResponseFormat, StructuredOutputs, constraint

# Known to OpenAI or vLLM, not yet to us, with the values that ask for nothing special.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
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
_NO_EFFECT = frozenset(
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

# What `chat_template_kwargs` may not name: parameters of transformers' `apply_chat_template`. Some have
# fields of their own (`documents` is refused there), the others are no variables of a template.
_NO_TEMPLATE_VARIABLES = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
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

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _UNSUPPORTED
    no_effect: ClassVar[frozenset[str]] = _NO_EFFECT

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


# Completions of one request, over all its prompts.
_MAX_CHOICES = 1024


def _normalize_prompt(prompt: Any) -> Any:
    """Return a list of prompts: strings or lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise refusal("`prompt` must be a string, a list of strings, or one or more lists of token ids")
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > _MAX_CHOICES:
        raise refusal(f"`prompt` holds {len(prompt)} prompts; a request may have {_MAX_CHOICES}")
    return prompt


class CompletionRequest(GenerationRequest):
    """Ask for the continuation of one or more prompts."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_UNSUPPORTED,
        "prompt_embeds": (),
        "suffix": ("",),
    }

    prompt: Annotated[
        Sequence[str | TokenIds],
        BeforeValidator(
            _normalize_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ] = Field(description="A text, several texts, or token ids in place of a text.")
    logprobs: StrictInt | None = Field(None, description="Log-probabilities of so many likely tokens.")
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    best_of: StrictInt | None = Field(
        None, le=128, description="Make so many, return the `n` likeliest by token; not in streams."
    )
    add_special_tokens: bool | None = Field(None, description="Tokenize with the model's BOS; default true.")

    @model_validator(mode="after")
    def _few_choices(self) -> CompletionRequest:
        each = max(self.n or 1, self.best_of or 1)
        if len(self.prompt) * each > _MAX_CHOICES:
            name = "n" if each == self.n else "best_of"
            raise refusal(
                f"{len(self.prompt)} prompts with `{name}` {each} make {len(self.prompt) * each} "
                f"completions; a request may have {_MAX_CHOICES}",
                name,
            )
        return self

    @model_validator(mode="after")
    def _limits_of_this_slice(self) -> CompletionRequest:
        if self.stream and self.best_of is not None and self.best_of != (self.n or 1):
            raise refusal("`best_of` other than `n` is not available with `stream`: true", "best_of")
        if self.echo and self.max_tokens == 0:
            raise refusal("`echo` with `max_tokens` 0 is not supported by this server yet", "max_tokens")
        return self

    def sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """See `GenerationRequest.sampling_params`; an echoed prompt has log-probabilities, too."""
        params = super().sampling_params(max_tokens=max_tokens, logprobs=logprobs)
        if self.echo and params.prompt_logprobs is None:
            params = replace(params, prompt_logprobs=logprobs)
        return replace(params, best_of=self.best_of)


class TextPart(StrictModel):
    """Hold a piece of a message's text."""

    type: Literal["text"]
    text: str


class Message(StrictModel):
    """Hold one message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": (),
        "tool_call_id": (),
        "tool_calls": ([],),
    }
    # Past thoughts and refusals are not part of what templates of non-reasoning models render.
    no_effect: ClassVar[frozenset[str]] = frozenset(
        {"annotations", "reasoning", "reasoning_content", "refusal"}
    )

    role: str
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role in ("tool", "function"):
            raise refusal(f"Messages of the role {role!r} are not supported by this server yet")
        if role not in ("system", "developer", "user", "assistant"):
            raise refusal(f"Unknown role {role[:50]!r}; the roles are system, developer, user and assistant")
        return role

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, content: Any) -> Any:
        if isinstance(content, list):
            for part in content:
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(kind, str) and kind != "text":
                    raise refusal(
                        f"Content parts of the type {kind[:50]!r} are not supported by this server yet"
                    )
        return content

    @model_validator(mode="after")
    def _has_content(self) -> Message:
        if self.content is None:
            raise refusal("`content` is required", "content")
        return self

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it: the content as one string.

        `developer` is what OpenAI renamed `system` to; templates know the old name.
        """
        if isinstance(self.content, list):
            content = "\n".join(part.text for part in self.content)
        else:
            content = self.content or ""
        message = {"role": "system" if self.role == "developer" else self.role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        return message


class ChatRequest(GenerationRequest):
    """Ask for the next message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **_UNSUPPORTED,
        "audio": (),
        "chat_template": (),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "mm_processor_kwargs": (),
        "modalities": (["text"],),
        "reasoning_effort": ("none",),
        "verbosity": (),
        "web_search_options": (),
    }
    # `prediction` may only make an answer faster, `parallel_tool_calls` and `include_reasoning` act on parts
    # of an answer that are never made here.
    no_effect: ClassVar[frozenset[str]] = _NO_EFFECT | {
        "include_reasoning",
        "parallel_tool_calls",
        "prediction",
    }

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=4096)
    logprobs: bool | None = Field(None, description="Give the log-probability of each token.")
    top_logprobs: StrictInt | None = Field(None, description="And of so many likely ones; needs `logprobs`.")
    max_completion_tokens: StrictInt | None = Field(
        None, description="Longest answer, in tokens; default: the rest of the context."
    )
    tools: list[dict[str, Any]] | None = Field(None, description='Only with `tool_choice` "none".')
    tool_choice: Any = Field(None, description='Only "none".')
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn; default true.")
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message; needs `add_generation_prompt`: false."
    )
    add_special_tokens: bool | None = Field(
        None, description="Add a BOS on top of the template's; default false."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_variables(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in kwargs or ():
            if name in _NO_TEMPLATE_VARIABLES:
                raise refusal(f"`chat_template_kwargs` must not set `{name}`")
        return kwargs

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.tools is not None and self.tool_choice != "none":
            raise refusal(
                '`tools` are not supported by this server yet; with `tool_choice`: "none" they are left out',
                "tools",
            )
        if self.tool_choice not in (None, "none", "auto"):
            raise refusal(
                '`tool_choice` other than "none" is not supported by this server yet', "tool_choice"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("`top_logprobs` needs `logprobs`: true", "top_logprobs")
        if self.continue_final_message and self.add_generation_prompt is not False:
            raise refusal(
                "`continue_final_message` needs `add_generation_prompt`: false", "continue_final_message"
            )
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise refusal(
                "`max_tokens` and `max_completion_tokens` differ; give one of them", "max_completion_tokens"
            )
        return self

    @property
    def completion_limit(self) -> int | None:
        """Return the longest answer asked for, under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
