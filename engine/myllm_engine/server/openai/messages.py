"""Describe the messages of a conversation."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..fields import StrictModel, refusal
from .vision import ImagePart

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Content parts by their type, besides which nothing is read.
_PART_TYPES = ("text", "refusal", "image_url")


class TextPart(StrictModel):
    """Hold a piece of a message's text."""

    # Prefixes are cached wherever they are the same.
    no_effect: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint"})

    type: Literal["text"]
    text: str


class RefusalPart(StrictModel):
    """Hold the assistant's refusal, as OpenAI's models word it."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """Return the words."""
        return self.refusal


def _in_full(part: Any) -> Any:
    """Return a part of a content as OpenAI writes it, where it is in one of vLLM's short forms."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, dict) and isinstance(part.get("image_url"), str):
        return {"type": "image_url", **part, "image_url": {"url": part["image_url"]}}
    return part


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class FunctionCall(StrictModel):
    """Hold which function was called, and with what."""

    name: str = Field(min_length=1)
    arguments: str = Field(description="A JSON object, as text.")

    @field_validator("arguments")
    @classmethod
    def _is_object(cls, text: str) -> str:
        try:
            # The text of a call without arguments is empty in some clients.
            value = json.loads(text or "{}")
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise refusal(f"`arguments` must be a JSON object, as text; got {text[:50]!r}")
        return text

    def for_template(self) -> dict[str, Any]:
        """Return the call with its arguments read: templates write them as JSON themselves."""
        return {"name": self.name, "arguments": json.loads(self.arguments or "{}")}


class MessageToolCall(StrictModel):
    """Hold one call in an assistant's message."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"custom": ()}
    reasons: ClassVar[dict[str, str]] = {"custom": "does not exist on this server: it calls functions"}
    # Clients send back the calls of a stream as they came.
    no_effect: ClassVar[frozenset[str]] = frozenset({"index"})

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall

    def for_template(self) -> dict[str, Any]:
        """Return the call as chat templates expect it."""
        own = {} if self.id is None else {"id": self.id}
        return {**own, "type": "function", "function": self.function.for_template()}


class Message(StrictModel):
    """Hold one message of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"audio": (), "task": (), "tools": ([],)}
    reasons: ClassVar[dict[str, str]] = {
        "audio": "is not available: this server hears and speaks nothing",
        "task": "is not taken: it is of DeepSeek V4's own format",
        "tools": "belong beside `messages`, not into one",
    }
    no_effect: ClassVar[frozenset[str]] = frozenset({"annotations"})

    role: str
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    refusal: str | None = Field(
        None, description="Of the assistant; stands for its content where there is none."
    )
    reasoning: str | None = Field(None, description="What the assistant thought.")
    reasoning_content: str | None = Field(None, description="The same, by its older name.")
    tool_calls: Annotated[list[MessageToolCall], Field(fail_fast=True)] | None = Field(
        None, description="Of the assistant."
    )
    tool_call_id: str | None = Field(None, description="Which call a tool's message answers.")
    function_call: FunctionCall | None = Field(
        None, description="OpenAI's form of a single call before 2023-11."
    )

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str) -> str:
        if role not in _ROLES:
            raise refusal(
                f"Unknown role {role[:50]!r}; the roles are {', '.join(_ROLES[:-1])} and {_ROLES[-1]}"
            )
        return role

    @field_validator("content", mode="before")
    @classmethod
    def _known_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        parts = [_in_full(part) for part in content]
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in _PART_TYPES:
                raise refusal(
                    f"Content parts of the type {str(kind)[:50]!r} are not read by this server; "
                    f"it reads {', '.join(_PART_TYPES)}"
                )
        return parts

    @model_validator(mode="after")
    def _fits_its_role(self) -> Message:
        calls = bool(self.tool_calls) or self.function_call is not None
        if calls and self.role != "assistant":
            field = "tool_calls" if self.tool_calls else "function_call"
            raise refusal(
                f"Only the assistant's messages have `{field}`; this one is the {self.role}'s", field
            )
        if self.tool_calls and self.function_call is not None:
            raise refusal("`function_call` and `tool_calls` exclude each other", "function_call")
        if self.tool_call_id is not None and self.role != "tool":
            raise refusal("Only messages of the role 'tool' have a `tool_call_id`", "tool_call_id")
        if self.role == "function" and self.name is None:
            raise refusal("`name` is required of the role 'function': the function that answers", "name")
        # What the limit on tokens cut off within its thoughts is an answer without content.
        thought = self.role == "assistant" and (self.reasoning or self.reasoning_content)
        if self.content is None and not calls and self.refusal is None and not thought:
            raise refusal("`content` is required", "content")
        return self

    @property
    def text(self) -> str:
        """Return the text of the content, as one string."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if not isinstance(part, ImagePart))
        return self.content if self.content is not None else self.refusal or ""

    @property
    def image_urls(self) -> list[str]:
        """Return where the message's images are, in their order."""
        parts = self.content if isinstance(self.content, list) else []
        return [part.image_url.url for part in parts if isinstance(part, ImagePart)]

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it; they read the parts of a content or its text.

        `developer` is what OpenAI renamed `system` to, and `function` is what it renamed to `tool`.
        """
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        content: Any = self.text
        if isinstance(self.content, list):
            content = [
                {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                for part in self.content
            ]
        message: dict[str, Any] = {"role": role, "content": content}
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [call.for_template() for call in self.tool_calls]
        elif self.function_call is not None:
            message["tool_calls"] = [{"type": "function", "function": self.function_call.for_template()}]
        reasoning = self.reasoning or self.reasoning_content
        if reasoning:
            # Each template reads one of the two.
            message["reasoning"] = message["reasoning_content"] = reasoning
        return message
