"""AutoGen's messages, tools and choices as a chat call of the SDK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from autogen_core import Image
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResultMessage,
    LLMMessage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel

from myllm import InvalidParameterError, UnsupportedFeatureError, params
from myllm.constraints import schema_of
from myllm.params import SHAPES

from .._clients import refuse_unfit
from .._messages import Row, closed, content, function_tool, image_part, text_part, tool_call, tool_result

ToolChoice = Tool | Literal["auto", "required", "none"]


def rows(messages: Sequence[LLMMessage], *, names: bool, prefixes: bool) -> list[Row]:
    """Return a conversation in OpenAI's format.

    Of an assistant's message the `thought` goes with calls as their message's text, for AutoGen keeps there
    both what was said beside calls and what was thought; beside a text it is the reasoning.

    Args:
        messages: the conversation.
        names: say who sent a user's message, in the field `name`.
        prefixes: say it in the text.

    Raises:
        InvalidParameterError: something that is no message.
    """
    out: list[Row] = []
    for position, message in enumerate(messages):
        if isinstance(message, SystemMessage):
            out.append({"role": "system", "content": message.content})
        elif isinstance(message, UserMessage):
            out.append(_user_row(message, names, prefixes))
        elif isinstance(message, AssistantMessage):
            out.append(_assistant_row(message))
        elif isinstance(message, FunctionExecutionResultMessage):
            out.extend(tool_result(result.call_id, result.content) for result in message.content)
        else:
            raise InvalidParameterError(
                f"`messages[{position}]` is a {type(message).__name__} and no message of AutoGen's.",
                param="messages",
            )
    return out


def _user_row(message: UserMessage, names: bool, prefixes: bool) -> Row:
    pieces = [message.content] if isinstance(message.content, str) else list(message.content)
    if prefixes:
        said = f"{message.source} said:\n"
        if pieces and isinstance(pieces[0], str):
            pieces[0] = said + pieces[0]
        else:
            pieces.insert(0, said)
    parts = [image_part(piece.data_uri) if isinstance(piece, Image) else text_part(piece) for piece in pieces]
    row: Row = {"role": "user", "content": content(parts)}
    return {**row, "name": message.source} if names else row


def _assistant_row(message: AssistantMessage) -> Row:
    if isinstance(message.content, str):
        row: Row = {"role": "assistant", "content": message.content}
        return {**row, "reasoning_content": message.thought} if message.thought else row
    calls = [tool_call(call.id, call.name, call.arguments) for call in message.content]
    return {"role": "assistant", "content": message.thought or None, "tool_calls": calls}


def refuse_misplaced(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters for which AutoGen has another place, or none; see `_clients.refuse_unfit`."""
    refuse_unfit(parameters, "AutoGen", no_place=("prompt_logprobs",))


def refuse_denied(
    stated: Mapping[str, Any],
    messages: Sequence[LLMMessage],
    tools: Sequence[Tool | ToolSchema],
    json_output: bool | type[BaseModel] | None,
) -> None:
    """Refuse what a `model_info` says that the model cannot do.

    Raises:
        UnsupportedFeatureError: naming the field.
    """
    images = any(
        isinstance(piece, Image)
        for message in messages
        if isinstance(message, UserMessage) and not isinstance(message.content, str)
        for piece in message.content
    )
    wanted = {
        "vision": images,
        "function_calling": bool(tools),
        "json_output": json_output is True,
        "structured_output": isinstance(json_output, type),
    }
    for ability, needed in wanted.items():
        if needed and stated.get(ability) is False:
            raise UnsupportedFeatureError(
                f"The call needs `{ability}`, which `model_info` denies; nothing was sent.",
                hint="Leave it out of the call, or of the client's `model_info`.",
            )


def call_options(
    tools: Sequence[Tool | ToolSchema],
    tool_choice: ToolChoice,
    json_output: bool | type[BaseModel] | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options of the SDK's call for the arguments of `ChatCompletionClient.create`.

    Raises:
        InvalidParameterError: an argument is not understood, or two say the same thing.
    """
    refuse_misplaced(extra)
    if "tool_choice" in extra:
        raise InvalidParameterError(
            "`tool_choice` is an argument of its own: leave it out of `extra_create_args`.",
            param="tool_choice",
        )
    shape = shape_options(json_output)
    given = params.canonical({name: extra[name] for name in extra if name in params.KNOWN_NAMES})
    if json_output and (both := SHAPES & given.keys()):
        raise InvalidParameterError(
            f"`json_output` and `{min(both)}` both say what the answer must look like: give one of them.",
            param=min(both),
        )
    return {**shape, **extra, **tool_options(tools, tool_choice)}


def tool_options(tools: Sequence[Tool | ToolSchema], choice: ToolChoice) -> dict[str, Any]:
    """Return the parameters that say which tools there are and how they are to be used.

    "auto" is what servers do by themselves, and is not sent: so a default of the client's holds, such as
    `tool_choice="required"` for a small model.

    Raises:
        InvalidParameterError: no tool, no choice, or a choice without its tool.
    """
    described = [_tool(position, tool) for position, tool in enumerate(tools)]
    names = [tool["function"]["name"] for tool in described]
    if isinstance(choice, Tool):
        if choice.name not in names:
            raise InvalidParameterError(
                f"`tool_choice` is the tool {choice.name!r}, and the `tools` are {names}.",
                param="tool_choice",
            )
        return {
            "tools": described,
            "tool_choice": {"type": "function", "function": {"name": choice.name}},
        }
    if choice not in ("auto", "required", "none"):
        raise InvalidParameterError(
            f"`tool_choice={choice!r}` must be 'auto', 'required', 'none' or a tool.", param="tool_choice"
        )
    if not described:
        if choice == "required":
            raise InvalidParameterError("`tool_choice='required'` needs `tools`.", param="tool_choice")
        return {"tools": [], "tool_choice": "none"}  # which takes back what the client's defaults say of it
    return {"tools": described, **({} if choice == "auto" else {"tool_choice": choice})}


def _tool(position: int, tool: Tool | ToolSchema) -> dict[str, Any]:
    schema = tool.schema if isinstance(tool, Tool) else tool
    if not isinstance(schema, Mapping) or not isinstance(schema.get("name"), str):
        raise InvalidParameterError(
            f"`tools[{position}]` is a {type(tool).__name__} and no tool: give a `Tool` or a `ToolSchema`.",
            param="tools",
        )
    more = {"strict": schema["strict"]} if schema.get("strict") else {}
    return function_tool(schema["name"], schema.get("description"), schema.get("parameters"), **more)


def shape_options(json_output: bool | type[BaseModel] | None) -> dict[str, Any]:
    """Return the parameters that say what the answer must look like.

    False takes back what the client's defaults say about it.

    Raises:
        InvalidParameterError: neither a bool nor a pydantic model class.
    """
    if json_output is None:
        return {}
    if json_output is True:
        return {"response_format": {"type": "json_object"}}
    if json_output is False:
        return dict.fromkeys(SHAPES)
    return {"json_schema": _closed_schema(json_output)}


@lru_cache(maxsize=256)
def _closed_schema(model_class: type[BaseModel]) -> dict[str, Any]:
    return closed(schema_of(model_class))
