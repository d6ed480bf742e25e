"""Describe the tools of a request, and read OpenAI's ways to ask for their calls into one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from ..fields import StrictModel, refusal
from ..tools import Tool

# OpenAI's, and dots, which the names of bundles of tools have.
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


_NOT_DEFERRED = "is not available: all tools are described to the model from the beginning"


class FunctionDefinition(StrictModel):
    """Describe a function that the model may call."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"defer_loading": (False,)}
    reasons: ClassVar[dict[str, str]] = {"defer_loading": _NOT_DEFERRED}
    # Arguments always keep to the schema.
    no_effect: ClassVar[frozenset[str]] = frozenset({"strict"})

    name: str = Field(description="Up to 64 letters, digits, underscores, dots and dashes.")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of its arguments, an object's.")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise refusal(
                "A function's name must be 1 to 64 letters, digits, underscores, dots and dashes; "
                f"got {name[:80]!r}"
            )
        return name

    @field_validator("parameters")
    @classmethod
    def _of_an_object(cls, parameters: dict[str, Any] | None) -> dict[str, Any] | None:
        if parameters is not None and parameters.get("type", "object") != "object":
            raise refusal(f"`parameters` must describe an object; its `type` is {parameters['type']!r}")
        return parameters


class ToolDefinition(StrictModel):
    """Describe a tool; functions are the only kind."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"defer_loading": (False,)}
    reasons: ClassVar[dict[str, str]] = {"defer_loading": _NOT_DEFERRED}

    type: Literal["function"] = "function"
    function: FunctionDefinition

    @model_validator(mode="before")
    @classmethod
    def _is_function(cls, data: Any) -> Any:
        kind = data.get("type", "function") if isinstance(data, dict) else "function"
        if kind != "function":
            raise refusal(
                f"Tools of the type {str(kind)[:50]!r} do not exist on this server: it calls functions",
                "type",
            )
        if isinstance(data, dict) and "function" not in data and "name" in data:
            raise refusal(
                'A tool must be {"type": "function", "function": {"name": …}} here; what holds `name` itself '
                "is written for /v1/responses"
            )
        return data

    def for_template(self) -> dict[str, Any]:
        """Return the tool as chat templates expect it."""
        function = self.function.model_dump(exclude_none=True)
        function.setdefault("parameters", {"type": "object", "properties": {}})
        return {"type": "function", "function": function}


class FunctionName(StrictModel):
    """Name a function."""

    name: str


class NamedTool(StrictModel):
    """Name a tool, as a choice or in a list of allowed ones."""

    type: Literal["function"] = "function"
    function: FunctionName


class AllowedTools(StrictModel):
    """Narrow down the tools that may be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(StrictModel):
    """Choose by a list of allowed tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


_WORDS = ("none", "auto", "required")


def _kind(choice: Any) -> str | None:
    """Return which kind of choice it is: errors then speak of that kind alone."""
    if isinstance(choice, str):
        return "word" if choice in _WORDS else None
    kind = choice.get("type", "function") if isinstance(choice, dict) else getattr(choice, "type", None)
    return kind if kind in ("function", "allowed_tools") else None


def _known_choice(choice: Any) -> Any:
    if choice is not None and _kind(choice) is None:
        raise refusal(
            f"`tool_choice` must be {', '.join(map(repr, _WORDS))}, a function as "
            '{"type": "function", "function": {"name": "..."}}, or "allowed_tools"; '
            f"got {str(choice)[:80]!r}"
        )
    return choice


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[NamedTool, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    Discriminator(_kind),
    BeforeValidator(_known_choice),
]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Say which calls an answer may or must hold.

    Attributes:
        mode: "auto": as the model likes; "required": one or more; "named": one, of the only tool.
        tools: that may be called.
        many: more than one call may be made.
    """

    mode: Literal["auto", "required", "named"]
    tools: tuple[Tool, ...]
    many: bool


def tool_use(
    tools: Sequence[ToolDefinition] | None,
    choice: str | NamedTool | AllowedToolsChoice | None,
    parallel: bool | None,
) -> ToolUse | None:
    """Return how tools are used in an answer; None: not at all.

    Raises:
        PydanticCustomError: the choice and the tools do not fit together.
    """
    if not tools:
        if choice not in (None, "none", "auto"):
            raise refusal("`tool_choice` needs `tools`", "tool_choice")
        return None
    by_name = {tool.function.name: Tool.of(tool.function.name, tool.function.parameters) for tool in tools}
    if len(by_name) < len(tools):
        names = [tool.function.name for tool in tools]
        twice = next(name for name in names if names.count(name) > 1)
        raise refusal(f"Two tools have the name {twice!r}", "tools")

    def named(chosen: Sequence[NamedTool]) -> tuple[Tool, ...]:
        names = dict.fromkeys(tool.function.name for tool in chosen)
        if missing := [name for name in names if name not in by_name]:
            raise refusal(
                f"`tool_choice` names {missing[0][:80]!r}, and the `tools` are {', '.join(by_name)}",
                "tool_choice",
            )
        return tuple(by_name[name] for name in names)

    many = parallel is not False
    if choice == "none":
        return None
    if isinstance(choice, NamedTool):
        return ToolUse("named", named([choice]), many=False)
    if isinstance(choice, AllowedToolsChoice):
        return ToolUse(choice.allowed_tools.mode, named(choice.allowed_tools.tools), many)
    return ToolUse("required" if choice == "required" else "auto", tuple(by_name.values()), many)
