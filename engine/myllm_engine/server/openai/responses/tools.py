"""Describe the tools of a response and which of them the model may call."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ...fields import StrictModel, refusal


class FunctionTool(StrictModel):
    """Describe a function that the client runs."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "allowed_callers": (["direct"],),
        "defer_loading": (False,),
        "output_schema": (),
    }

    type: str
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def for_chat(self) -> dict[str, Any]:
        """Return the tool as chat completions write it."""
        return {"type": "function", "function": self.model_dump(exclude={"type"}, exclude_none=True)}


def _read_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise refusal(
            f"Tools of the type {kind[:50]!r} are not run by this server; it has those of the type "
            '"function", which the client runs',
            "type",
        )
    return FunctionTool.model_validate(value)


Tool = Annotated[Any, BeforeValidator(_read_tool, json_schema_input_type=FunctionTool)]
Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=128)]


class NamedTool(StrictModel):
    """Name the one function that must be called."""

    type: str
    name: str

    def for_chat(self) -> dict[str, Any]:
        """Return the name as chat completions write it."""
        return {"type": "function", "function": {"name": self.name}}


class AllowedTools(StrictModel):
    """Say which of the tools may be called, or must be."""

    type: str
    mode: str
    tools: list[NamedTool] = Field(min_length=1)


Choice = str | NamedTool | AllowedTools


def _read_choice(value: Any) -> Choice | None:
    if value is None or value in ("none", "auto", "required"):
        return value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function":
        return NamedTool.model_validate(value)
    if kind == "allowed_tools":
        choice = AllowedTools.model_validate(value)
        if choice.mode not in ("auto", "required"):
            raise refusal('`mode` must be "auto" or "required"', "mode")
        return choice
    raise refusal(
        '`tool_choice` must be "none", "auto", "required", {"type": "function", "name": …} or {"type": '
        '"allowed_tools", "mode": …, "tools": […]}'
    )


ToolChoice = Annotated[Any, BeforeValidator(_read_choice, json_schema_input_type=str | dict[str, Any])]


def check_choice(choice: Choice | None, tools: list[FunctionTool]) -> None:
    """Refuse a choice of tools that are not there."""
    if choice == "required" and not tools:
        raise refusal('`tool_choice`: "required" needs `tools`', "tool_choice")
    named = {tool.name for tool in tools}
    wanted = [choice] if isinstance(choice, NamedTool) else getattr(choice, "tools", [])
    for tool in wanted:
        if tool.name not in named:
            raise refusal(f"`tool_choice` names {tool.name[:100]!r}, which is not in `tools`", "tool_choice")


def for_chat(choice: Choice, tools: list[FunctionTool]) -> dict[str, Any]:
    """Return `tools` and `tool_choice` as chat completions write them."""
    if not tools:
        return {}
    chosen: Any = choice
    if isinstance(choice, NamedTool):
        chosen = choice.for_chat()
    elif isinstance(choice, AllowedTools):
        allowed = {"mode": choice.mode, "tools": [tool.for_chat() for tool in choice.tools]}
        chosen = {"type": "allowed_tools", "allowed_tools": allowed}
    return {"tools": [tool.for_chat() for tool in tools], "tool_choice": chosen}
