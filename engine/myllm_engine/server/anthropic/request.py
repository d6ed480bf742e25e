"""Describe the bodies of `POST /v1/messages` and `POST /v1/messages/count_tokens`.

Types: `anthropic/types/message_create_params.py` of the anthropic package; vLLM's additions:
`vllm/entrypoints/anthropic/protocol.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from ..fields import StrictModel, refusal
from ..openai.protocol import REASONS, UNSUPPORTED, Texts
from .blocks import CACHE, Content, ToolUse, Turn, as_messages, check_blocks

# What clients call the fields that have other names in chat requests and in the engine.
NAMES = {
    "max_completion_tokens": "max_tokens",
    "prompt": "messages",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}


class Tool(StrictModel):
    """Describe a function that the client runs."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "defer_loading": (False,),
    }
    # Arguments are streamed as they are made in any case.
    no_effect: ClassVar[frozenset[str]] = CACHE | {"eager_input_streaming", "input_examples"}

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return the tool as chat completions write it."""
        function = self.model_dump(include={"name", "description", "strict"}, exclude_none=True)
        return {"type": "function", "function": {**function, "parameters": self.input_schema}}


def _read_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise refusal(
            f"Tools of the type {str(kind)[:50]!r} are Anthropic's own; this server has those that come with "
            "an `input_schema`",
            "type",
        )
    return Tool.model_validate(value)


class ToolChoice(StrictModel):
    """Say which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> ToolChoice:
        if self.type == "tool" and self.name is None:
            raise refusal("`name` is required by this type", "name")
        return self

    def for_chat(self) -> Any:
        """Return the choice as chat completions write it."""
        if self.type == "tool":
            return {"type": "function", "function": {"name": self.name}}
        return {"any": "required"}.get(self.type, self.type)


class ThinkingConfig(StrictModel):
    """Say whether a reasoning model thinks, and how much; see `MessagesRequest.thinking_budget`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: StrictInt | None = Field(None, ge=1)
    display: Literal["summarized", "omitted", "updates"] | None = None


class OutputFormat(StrictModel):
    """Say what the text must look like."""

    type: Literal["json_schema"]
    # `schema` is a name of pydantic's own method.
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(StrictModel):
    """Configure the answer."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"task_budget": ()}
    reasons: ClassVar[dict[str, str]] = {
        "task_budget": "is not told to the model: `max_tokens` limits the answer"
    }

    effort: str | None = None
    format: OutputFormat | None = None


class MessagesPrompt(StrictModel):
    """Hold what makes the prompt of an answer: all that is needed to count its tokens."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "compaction": (),
        # The last one asks for nothing to be cleared.
        "context_management": (
            {},
            {"edits": []},
            {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        ),
        "mcp_servers": ([],),
        "thread": (),
    }
    reasons: ClassVar[dict[str, str]] = {
        "compaction": "is not available: ask for a summary in a message",
        "context_management": "is not available: contexts are not edited here",
        "mcp_servers": "are not called by this server: call them, and send their tools in `tools`",
        "thread": "is kept by Anthropic: send all messages",
    }
    # They concern Anthropic's service, or what follows when its models decline.
    no_effect: ClassVar[frozenset[str]] = CACHE | {
        "billing_policy",
        "fallback_credit_token",
        "fallbacks",
        "speed",
        "user_profile_id",
        "workspace_id",
    }

    model: str | None = Field(None, description="A served name; may be left out.")
    messages: Annotated[list[Turn], Field(fail_fast=True)] = Field(min_length=1, max_length=4096)
    system: Content | None = Field(None, description="A text, or blocks of text.")
    tools: (
        Annotated[
            list[Annotated[Any, BeforeValidator(_read_tool, json_schema_input_type=Tool)]],
            Field(fail_fast=True, max_length=128),
        ]
        | None
    ) = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(None, description="Which of them; default auto.")
    thinking: ThinkingConfig | None = Field(
        None, description="Sets `enable_thinking` for the model's chat template, which may know it."
    )
    output_config: OutputConfig | None = Field(None, description="Effort of reasoning; JSON by schema.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")

    @model_validator(mode="after")
    def _in_place(self) -> MessagesPrompt:
        check_blocks("system", self.system or ())
        for message in self.messages:
            check_blocks(message.role, message.content)
        if self._goes_on and any(isinstance(block, ToolUse) for block in self.messages[-1].content):
            raise refusal("The last message calls tools: send their results after it", "messages")
        choice, names = self.tool_choice, {tool.name for tool in self.tools or ()}
        if choice is not None and choice.type == "any" and not names:
            raise refusal('`tool_choice` of the type "any" needs `tools`', "tool_choice")
        if choice is not None and choice.type == "tool" and choice.name not in names:
            raise refusal(f"`tool_choice` names {choice.name!r}, which is not in `tools`", "tool_choice")
        return self

    @property
    def _goes_on(self) -> bool:
        """Tell whether the answer goes on with what the last message, the assistant's, begins."""
        return self.messages[-1].role == "assistant"

    def chat_fields(self) -> dict[str, Any]:
        """Return the body of a chat request of the same conversation; None is a field left out."""
        fields: dict[str, Any] = {
            "model": self.model,
            "messages": as_messages(self.system or (), self.messages),
            "chat_template_kwargs": self._template_variables(),
        }
        if self.tools:
            choice = self.tool_choice or ToolChoice(type="auto")
            fields |= {
                "tools": [tool.for_chat() for tool in self.tools],
                "tool_choice": choice.for_chat(),
                "parallel_tool_calls": False if choice.disable_parallel_tool_use else None,
            }
        if self._goes_on:
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        if self.output_config is not None:
            fields["reasoning_effort"] = self.output_config.effort
            if (wanted := self.output_config.format) is not None:
                schema = {"name": "output", "schema": wanted.schema_}
                fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        return fields

    def _template_variables(self) -> dict[str, Any] | None:
        if self.thinking is None:
            return self.chat_template_kwargs
        return {"enable_thinking": self.thinking.type != "disabled", **(self.chat_template_kwargs or {})}


class MessagesRequest(MessagesPrompt):
    """Ask for the next message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **MessagesPrompt.unsupported,
        **{name: UNSUPPORTED[name] for name in ("ec_transfer_params", "kv_transfer_params", "vllm_xargs")},
        "container": (),
    }
    reasons: ClassVar[dict[str, str]] = {
        **REASONS,
        **MessagesPrompt.reasons,
        "container": "is Anthropic's: no code runs here",
    }
    # As above, or about images handed between vLLM's servers.
    no_effect: ClassVar[frozenset[str]] = MessagesPrompt.no_effect | {
        "diagnostics",
        "inference_geo",
        "metadata",
        "mm_payload",
        "return_mm_kwargs",
        "service_tier",
    }

    max_tokens: StrictInt = Field(ge=1, description="Longest answer, in tokens.")
    stream: bool | None = Field(None, description="Send events as the answer is made; default false.")
    stop_sequences: Texts | None = Field(None, description="Strings that end the text, left out of it.")
    temperature: float | None = Field(None, description="0 is greedy; default 1.")
    top_k: StrictInt | None = Field(None, description="0 or -1: off; the default.")
    top_p: float | None = Field(None, description="In (0, 1]; default 1.")
    watermarking: bool | None = Field(None, description="Mark the text as TGI does.")
    cache_salt: str | None = Field(None, description="Share cached prefixes with the same salt only.")

    @model_validator(mode="after")
    def _budget_fits(self) -> MessagesRequest:
        budget = self.thinking.budget_tokens if self.thinking else None
        if budget is not None and budget >= self.max_tokens:
            raise refusal("`thinking.budget_tokens` must be less than `max_tokens`", "thinking.budget_tokens")
        return self

    @property
    def shows_thinking(self) -> bool:
        """Tell whether the answer has what the model thinks."""
        return self.thinking is None or self.thinking.display != "omitted"

    @property
    def thinking_budget(self) -> int | None:
        """Return how many tokens the thoughts may take, where somebody tells them apart; None: no limit."""
        return self.thinking.budget_tokens if self.thinking and self.thinking.type == "enabled" else None

    def chat_fields(self) -> dict[str, Any]:
        """Return the body of a chat request of the same conversation; None is a field left out."""
        return {
            **super().chat_fields(),
            "max_completion_tokens": self.max_tokens,
            "stop": self.stop_sequences,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "watermarking": self.watermarking,
            "cache_salt": self.cache_salt,
        }
