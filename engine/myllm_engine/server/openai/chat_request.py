"""Describe the body of `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PrivateAttr, StrictInt, field_validator, model_validator

from ..fields import refusal
from .messages import Message
from .protocol import NO_EFFECT, REASONS, UNSUPPORTED, GenerationRequest
from .tgi_words import from_tgi
from .tool_request import (
    FunctionDefinition,
    FunctionName,
    NamedTool,
    ToolChoice,
    ToolDefinition,
    ToolUse,
    tool_use,
)

# What `chat_template_kwargs` may not name: parameters of transformers' `apply_chat_template`. Some have
# fields of their own, the others are no variables of a template.
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


# OpenAI's, and vLLM's "max".
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

_TEXT_ONLY = "this server hears and speaks nothing"


class ChatRequest(GenerationRequest):
    """Ask for the next message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **UNSUPPORTED,
        "audio": (),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
    reasons: ClassVar[dict[str, str]] = {
        **REASONS,
        "audio": f"is not available: {_TEXT_ONLY}",
        "media_io_kwargs": "are not taken: images are read as the server is set",
        "mm_processor_kwargs": "are not taken: the model sees images as it was trained to",
        "modalities": f'must be ["text"]: {_TEXT_ONLY}',
        "moderation": "is not available: this server has no model that judges texts",
        "verbosity": "is not available: say in a message how long the answer shall be",
        "web_search_options": "are not available: this server searches nothing",
    }
    # `prediction` and OpenAI's options of its cache may only make an answer faster, or cheaper.
    no_effect: ClassVar[frozenset[str]] = NO_EFFECT | {"prediction", "prompt_cache_options"}

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=4096)
    logprobs: bool | None = Field(None, description="Give the log-probability of each token.")
    top_logprobs: StrictInt | None = Field(None, description="And of so many likely ones; needs `logprobs`.")
    max_completion_tokens: StrictInt | None = Field(
        None, description="Longest answer, in tokens; default: the rest of the context."
    )
    tools: Annotated[list[ToolDefinition], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=128, description="Functions that the model may call."
    )
    tool_choice: ToolChoice | None = Field(
        None, description='"none", "auto" (the default), "required", or the function to call.'
    )
    parallel_tool_calls: bool | None = Field(None, description="Allow more than one call; default true.")
    functions: Annotated[list[FunctionDefinition], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=128, description="OpenAI's form of `tools` before 2023-11."
    )
    function_call: Literal["none", "auto"] | FunctionName | None = Field(
        None, description="OpenAI's form of `tool_choice` before 2023-11."
    )
    reasoning_effort: str | None = Field(
        None, description='For the chat template, with `enable_thinking`: false for "none".'
    )
    thinking_token_budget: StrictInt | None = Field(
        None, ge=-1, lt=2**24, description="Longest thoughts, in tokens; -1, the default: no limit."
    )
    include_reasoning: bool | None = Field(None, description="Show what the model thinks; default true.")
    echo: bool | None = Field(None, description="Begin with the last message, if it has the answer's role.")
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn; default true.")
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message; needs `add_generation_prompt`: false."
    )
    add_special_tokens: bool | None = Field(
        None, description="Add a BOS on top of the template's; default false."
    )
    documents: list[dict[str, Any]] | None = Field(
        None, description="For the chat template, where it takes any."
    )
    chat_template: str | None = Field(
        None, description="Replaces the model's; only where the server trusts its clients' templates."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")

    @field_validator("chat_template_kwargs")
    @classmethod
    def _template_variables(cls, kwargs: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in kwargs or ():
            if name in _NO_TEMPLATE_VARIABLES:
                raise refusal(f"`chat_template_kwargs` must not set `{name}`")
        return kwargs

    @field_validator("reasoning_effort")
    @classmethod
    def _known_effort(cls, effort: str | None) -> str | None:
        if effort is not None and effort not in _EFFORTS:
            raise refusal(f"`reasoning_effort` must be one of {', '.join(_EFFORTS)}; got {effort[:50]!r}")
        return effort

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
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

    @model_validator(mode="after")
    def _tools_fit_together(self) -> ChatRequest:
        if self.functions and self.tools:
            raise refusal("`functions` and `tools` exclude each other", "functions")
        if self.function_call is not None and not self.functions and self.function_call != "none":
            raise refusal("`function_call` needs `functions`", "function_call")
        self._tool_use = self._read_tools()
        return self

    _tool_use: ToolUse | None = PrivateAttr(None)

    def _read_tools(self) -> ToolUse | None:
        if not self.functions:
            return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)
        choice = self.function_call
        if isinstance(choice, FunctionName):
            choice = NamedTool(function=choice)
        return tool_use(self._definitions, choice, parallel=False)

    @property
    def _definitions(self) -> list[ToolDefinition]:
        return self.tools or [ToolDefinition(function=function) for function in self.functions or ()]

    @property
    def tool_use(self) -> ToolUse | None:
        """Return which calls the answer may or must hold; None: none at all."""
        return self._tool_use

    @property
    def completion_limit(self) -> int | None:
        """Return the longest answer asked for, under either name."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def template_variables(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the chat template gets besides messages.

        Args:
            defaults: the server's, which the request may override.
        """
        variables = dict(defaults)
        if self.reasoning_effort is not None:
            # Of the templates that let the effort be chosen some know levels, the others a switch.
            variables["reasoning_effort"] = self.reasoning_effort
            variables["enable_thinking"] = self.reasoning_effort != "none"
        if self.documents is not None:
            variables["documents"] = self.documents
        if self.tool_use is not None:
            variables["tools"] = [tool.for_template() for tool in self._definitions]
        return {**variables, **(self.chat_template_kwargs or {})}
