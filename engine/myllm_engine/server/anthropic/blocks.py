"""Describe the messages of Anthropic's API and their blocks, and read them as the messages of a chat.

Types: `anthropic/types/*_block_param.py` of the anthropic package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..fields import StrictModel, refusal

# Prompts that begin alike share their cache here without being told to.
CACHE = frozenset({"cache_control"})


class Text(StrictModel):
    """Hold a piece of text."""

    no_effect: ClassVar[frozenset[str]] = CACHE | {"citations"}

    type: Literal["text"]
    text: str


class ImageSource(StrictModel):
    """Say where an image is: in the request or on the web."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"file_id": ()}
    reasons: ClassVar[dict[str, str]] = {"file_id": "is of Anthropic's files: send the image itself"}

    type: Literal["base64", "url"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> ImageSource:
        for name in ("media_type", "data") if self.type == "base64" else ("url",):
            if getattr(self, name) is None:
                raise refusal(f"`{name}` is required by this type", name)
        return self


class Image(StrictModel):
    """Hold an image."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "transformations": ({}, {"oversized_image": "downsize"})
    }
    reasons: ClassVar[dict[str, str]] = {
        "transformations": "are not chosen here: images are scaled down to what the model was trained to see"
    }
    no_effect: ClassVar[frozenset[str]] = CACHE

    type: Literal["image"]
    source: ImageSource

    @property
    def url(self) -> str:
        """Return the image's URL, a data URL where it came with the request."""
        source = self.source
        return (
            f"data:{source.media_type};base64,{source.data}" if source.type == "base64" else str(source.url)
        )


def _read_block(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise refusal("A block is an object with a `type`")
    if kind not in _BLOCKS:
        raise refusal(
            f"Blocks of the type {kind[:50]!r} are not known to this server; the types are "
            f"{', '.join(_BLOCKS)}",
            "type",
        )
    return _BLOCKS[kind].model_validate(value)


def _as_blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Content = Annotated[
    list[Annotated[Any, BeforeValidator(_read_block, json_schema_input_type=dict[str, Any])]],
    Field(fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[dict[str, Any]]),
]


class ToolUse(StrictModel):
    """Hold a call that the model made."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"caller": ({"type": "direct"},), "toolset_name": ()}
    no_effect: ClassVar[frozenset[str]] = CACHE

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResult(StrictModel):
    """Hold what a call returned."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"toolset_name": ()}
    no_effect: ClassVar[frozenset[str]] = CACHE

    type: Literal["tool_result"]
    tool_use_id: str
    content: Content = Field(default_factory=list)
    is_error: bool | None = None


class Thinking(StrictModel):
    """Hold what the model thought; nothing is signed here."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"signature"})

    type: Literal["thinking"]
    thinking: str


class RedactedThinking(StrictModel):
    """Hold thoughts that only Anthropic's own models can read: they are left out."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"data"})

    type: Literal["redacted_thinking"]


_BLOCKS: dict[str, type[StrictModel]] = {
    "text": Text,
    "image": Image,
    "tool_use": ToolUse,
    "tool_result": ToolResult,
    "thinking": Thinking,
    "redacted_thinking": RedactedThinking,
}

_OF_ROLE: dict[str, tuple[type[StrictModel], ...]] = {
    "system": (Text,),
    "user": (Text, Image, ToolResult),
    "assistant": (Text, ToolUse, Thinking, RedactedThinking),
}


class Turn(StrictModel):
    """Hold one turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: Content


def check_blocks(role: str, blocks: Iterable[Any]) -> None:
    """Refuse blocks that a role does not have."""
    for block in blocks:
        if not isinstance(block, _OF_ROLE[role]):
            raise refusal(f"Blocks of the type {block.type!r} do not belong to the role {role!r}", "content")


def as_messages(system: Iterable[Text], turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return the messages of a chat: consecutive ones of a role are one, tool results have their own."""
    messages: list[dict[str, Any]] = []
    if parts := [_part(block) for block in system]:
        messages.append({"role": "system", "content": parts})
    for turn in turns:
        for block in turn.content:
            if isinstance(block, ToolResult):
                messages.append(_tool_message(block))
        rest = [block for block in turn.content if not isinstance(block, ToolResult | RedactedThinking)]
        if not rest:
            continue
        if not messages or messages[-1]["role"] != turn.role:
            messages.append({"role": turn.role})
        for block in rest:
            _put(messages[-1], block)
    for message in messages:
        if "content" in message or "tool_calls" not in message:
            message["content"] = _joined(message.get("content", []))
    return messages


def _put(message: dict[str, Any], block: Any) -> None:
    if isinstance(block, ToolUse):
        function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
        call = {"id": block.id, "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)
    elif isinstance(block, Thinking):
        message["reasoning"] = message.get("reasoning", "") + block.thinking
    else:
        message.setdefault("content", []).append(_part(block))


def _tool_message(block: ToolResult) -> dict[str, Any]:
    # Chats have no flag for it, and the model must know.
    failed = [{"type": "text", "text": "Error:"}] if block.is_error else []
    content = failed + [_part(part) for part in block.content]
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}


def _part(block: Any) -> dict[str, Any]:
    if isinstance(block, Image):
        return {"type": "image_url", "image_url": {"url": block.url}}
    return {"type": "text", "text": block.text}


def _joined(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return content of a single text as that text: every template takes it."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
