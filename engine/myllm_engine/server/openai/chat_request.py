"""Describe the body of `POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, StrictInt, field_validator, model_validator

from ..fields import refusal
from .messages import Message
from .protocol import NO_EFFECT, UNSUPPORTED, GenerationRequest
from .tgi_words import from_tgi

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


class ChatRequest(GenerationRequest):
    """Ask for the next message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **UNSUPPORTED,
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
    no_effect: ClassVar[frozenset[str]] = NO_EFFECT | {
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

    @model_validator(mode="before")
    @classmethod
    def _from_tgi(cls, data: Any) -> Any:
        return from_tgi(data) if isinstance(data, dict) else data

    @property
    def completion_limit(self) -> int | None:
        """Return the longest answer asked for, under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
