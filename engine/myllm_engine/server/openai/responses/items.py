"""Describe the items of a response's input, and read them as the messages of a chat.

Types: `openai/types/responses/response_input_item_param.py` of the openai package.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ...fields import StrictModel, refusal

Status = Literal["in_progress", "completed", "incomplete"]


class Text(StrictModel):
    """Hold a piece of text; of an assistant's message also with what was known of it."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text"]
    text: str

    def for_chat(self) -> dict[str, Any]:
        """Return the part as chat completions write it."""
        return {"type": "text", "text": self.text}


class Refusal(StrictModel):
    """Hold an assistant's words for not answering."""

    type: Literal["refusal"]
    refusal: str

    def for_chat(self) -> dict[str, Any]:
        """Return the part as chat completions write it."""
        return {"type": "text", "text": self.refusal}


class Image(StrictModel):
    """Hold an image, as a URL or a data URL."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"file_id": ()}
    reasons: ClassVar[dict[str, str]] = {"file_id": "is of OpenAI's files: send `image_url`"}
    no_effect: ClassVar[frozenset[str]] = frozenset({"prompt_cache_breakpoint"})

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return the part as chat completions write it."""
        image = {"url": self.image_url} | ({} if self.detail is None else {"detail": self.detail})
        return {"type": "image_url", "image_url": image}


_PARTS: dict[str, type[Text | Refusal | Image]] = {
    "input_text": Text,
    "output_text": Text,
    "refusal": Refusal,
    "input_image": Image,
}


def _read_part(value: Any) -> Any:
    kind = _type_of(value)
    if kind not in _PARTS:
        raise refusal(f"{kind[:50]!r} is not one of {', '.join(_PARTS)}", "type")
    return _PARTS[kind].model_validate(value)


def _read_parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


def _type_of(value: Any) -> str:
    if not isinstance(value, dict):
        raise refusal(f"An object is expected, not {str(value)[:50]!r}")
    kind = value.get("type")
    if not isinstance(kind, str):
        raise refusal("`type` is required", "type")
    return kind


Part = Annotated[Any, BeforeValidator(_read_part, json_schema_input_type=dict[str, Any])]
Content = Annotated[
    list[Part],
    Field(fail_fast=True),
    BeforeValidator(_read_parts, json_schema_input_type=str | list[dict[str, Any]]),
]


class Message(StrictModel):
    """Hold what somebody said."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"phase"})

    type: Literal["message"] = "message"
    id: str = Field(default_factory=lambda: f"msg_{uuid.uuid4().hex}")
    status: Status = "completed"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    @model_validator(mode="after")
    def _said_by(self) -> Message:
        """Call a text what OpenAI calls it in a listing, where the client wrote it as a mere string."""
        if self.role == "assistant":
            for part in self.content:
                if isinstance(part, Text):
                    part.type = "output_text"
        return self


class FunctionCall(StrictModel):
    """Hold a call that the model made; `arguments` is their JSON text."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": ({"type": "direct"},), "namespace": ()}

    type: Literal["function_call"]
    id: str = Field(default_factory=lambda: f"fc_{uuid.uuid4().hex}")
    status: Status = "completed"
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(StrictModel):
    """Hold what a call returned."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": ({"type": "direct"},), "namespace": ()}
    no_effect: ClassVar[frozenset[str]] = frozenset({"name"})

    type: Literal["function_call_output"]
    id: str = Field(default_factory=lambda: f"fco_{uuid.uuid4().hex}")
    status: Status = "completed"
    call_id: str
    output: Content


class ReasoningText(StrictModel):
    """Hold a piece of what the model thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class Reasoning(StrictModel):
    """Hold what the model thought before it answered; nothing is encrypted here."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"encrypted_content"})

    type: Literal["reasoning"]
    id: str = Field(default_factory=lambda: f"rs_{uuid.uuid4().hex}")
    status: Status = "completed"
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] = Field(default_factory=list)

    @property
    def text(self) -> str:
        """Return the thoughts themselves, or else their summary."""
        return "".join(part.text for part in self.content or self.summary)


class ItemReference(StrictModel):
    """Stand for an item of a stored response."""

    type: Literal["item_reference"]
    id: str


AnyItem = Message | FunctionCall | FunctionCallOutput | Reasoning | ItemReference

_ITEMS: dict[str, type[AnyItem]] = {
    "message": Message,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "reasoning": Reasoning,
    "item_reference": ItemReference,
}


def read_item(value: Any) -> AnyItem:
    """Read an item; `type` may be left out of messages.

    Raises:
        ValidationError, PydanticCustomError: it is none, or one of tools that this server does not have.
    """
    if isinstance(value, dict) and value.get("type") is None:
        value = {**value, "type": "message"}
    kind = _type_of(value)
    if kind not in _ITEMS:
        raise refusal(
            f"Items of the type {kind[:50]!r} belong to tools that this server does not have; the types are "
            f"{', '.join(_ITEMS)}",
            "type",
        )
    return _ITEMS[kind].model_validate({name: given for name, given in value.items() if given is not None})


Item = Annotated[Any, BeforeValidator(read_item, json_schema_input_type=dict[str, Any])]

# A chat's message has its parts in this order; an item that would go before one that is there begins another.
_ORDER = ("reasoning", "content", "tool_calls")


def as_messages(items: Iterable[AnyItem]) -> list[dict[str, Any]]:
    """Return the items as messages of a chat: what the model thought, said and called in one go is one."""
    messages: list[dict[str, Any]] = []

    def turn(part: str) -> dict[str, Any]:
        later = _ORDER[_ORDER.index(part) + 1 :] + (("content",) if part == "content" else ())
        if not messages or messages[-1]["role"] != "assistant" or any(name in messages[-1] for name in later):
            messages.append({"role": "assistant"})
        return messages[-1]

    for item in items:
        if isinstance(item, Reasoning):
            message = turn("reasoning")
            message["reasoning"] = message.get("reasoning", "") + item.text
        elif isinstance(item, FunctionCall):
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            turn("tool_calls").setdefault("tool_calls", []).append(call)
        elif isinstance(item, FunctionCallOutput):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)})
        elif isinstance(item, Message) and item.role == "assistant":
            turn("content")["content"] = _content(item.content)
        elif isinstance(item, Message):
            messages.append({"role": item.role, "content": _content(item.content)})
    for message in messages:
        if "tool_calls" not in message:
            message.setdefault("content", "")  # thoughts that led to nothing
    return messages


def _content(parts: Sequence[Text | Refusal | Image]) -> str | list[dict[str, Any]]:
    if not parts:
        return ""
    if len(parts) == 1 and not isinstance(parts[0], Image):
        return str(parts[0].for_chat()["text"])
    return [part.for_chat() for part in parts]


def is_unfinished(items: Sequence[AnyItem]) -> bool:
    """Tell whether the last item is an assistant's message that the answer is to go on with."""
    last = items[-1] if items else None
    return isinstance(last, Message) and last.role == "assistant" and last.status != "completed"
