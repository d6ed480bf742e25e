"""AG2's conversations, tools and answers' schemas as a chat call of the SDK."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

from ag2.compact import CompactionSummary
from ag2.events import (
    BaseEvent,
    BinaryInput,
    BinaryType,
    DataInput,
    Input,
    ModelRequest,
    ModelResponse,
    TextInput,
    ToolResultsEvent,
    UrlInput,
)
from ag2.exceptions import UnsupportedInputError, UnsupportedToolError
from ag2.response import ResponseProto
from ag2.tools.final import FunctionToolSchema
from ag2.tools.schemas import ToolSchema
from fast_depends.library.serializer import SerializerProto

from .._messages import (
    Part,
    Row,
    audio_part,
    closed,
    content,
    function_tool,
    image_part,
    text_part,
    tool_call,
    tool_result,
    video_part,
)

_NAME = "myllm"


def rows(prompt: Sequence[str], messages: Sequence[BaseEvent], serializer: SerializerProto) -> list[Row]:
    """Return a conversation in OpenAI's format: the events of it that a model is told, in their order.

    Raises:
        UnsupportedInputError: an input that no server of this API reads.
    """
    out: list[Row] = [{"role": "system", "content": "\n".join(prompt)}] if prompt else []
    for event in messages:
        if isinstance(event, ModelRequest):
            out.append({"role": "user", "content": _content(event.parts, serializer)})
        elif isinstance(event, ModelResponse):
            out.append(_assistant_row(event))
        elif isinstance(event, ToolResultsEvent):
            out.extend(
                tool_result(result.parent_id, _content(result.result.parts, serializer))
                for result in event.results
            )
        elif isinstance(event, CompactionSummary):
            # As AG2's own clients put it: a user's turn, which may open a conversation.
            out.append({"role": "user", "content": f"[Summary of earlier conversation]\n{event.summary}"})
    return out


def _assistant_row(event: ModelResponse) -> Row:
    calls = [tool_call(call.id, call.name, call.arguments) for call in event.tool_calls.calls]
    if calls:
        return {"role": "assistant", "content": event.content, "tool_calls": calls}
    return {"role": "assistant", "content": event.content or ""}


def _content(parts: Iterable[Input], serializer: SerializerProto) -> str | list[Part]:
    return content([_part(part, serializer) for part in parts])


def _part(part: Input, serializer: SerializerProto) -> Part:
    if isinstance(part, TextInput):
        return text_part(part.content)
    if isinstance(part, DataInput):
        return text_part(serializer.encode(part.data).decode())
    if isinstance(part, BinaryInput):
        data = base64.b64encode(part.data).decode("ascii")
        return _medium(part.kind, f"data:{part.media_type};base64,{data}", part.vendor_metadata.get("detail"))
    if isinstance(part, UrlInput):
        return _medium(part.kind, part.url)
    raise UnsupportedInputError(type(part).__name__, _NAME)


def _medium(kind: BinaryType, url: str, detail: str | None = None) -> Part:
    if kind is BinaryType.IMAGE:
        return image_part(url, detail)
    if kind is BinaryType.AUDIO:
        return audio_part(url)
    if kind is BinaryType.VIDEO:
        return video_part(url)
    raise UnsupportedInputError(f"{kind.value} input", _NAME)


def tool_options(tools: Iterable[ToolSchema]) -> dict[str, Any]:
    """Return the parameters that say which tools there are.

    Raises:
        UnsupportedToolError: a tool that a service would run itself.
    """
    described = [_tool(tool) for tool in tools]
    # Without tools, what the client's defaults say of their use is taken back.
    return {"tools": described} if described else {"tools": [], "tool_choice": "none"}


def _tool(tool: ToolSchema) -> dict[str, Any]:
    if not isinstance(tool, FunctionToolSchema):
        raise UnsupportedToolError(tool.type, _NAME)
    if tool.defer_loading:
        raise UnsupportedToolError("function with defer_loading", _NAME)
    function = tool.function
    return function_tool(function.name, function.description or None, function.parameters)


def shape_options(schema: ResponseProto[Any] | None) -> dict[str, Any]:
    """Return the parameters that say what the answer must look like."""
    if schema is None or not schema.json_schema:
        return {}
    about = {"title": schema.name, "description": schema.description}
    named = {name: text for name, text in about.items() if text}
    return {"json_schema": {**closed(schema.json_schema), **named}}
