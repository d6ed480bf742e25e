"""Define what a parser of tool calls is: how a family of models writes calls, and how they are read back.

A parser gives both directions of one format, so that they cannot disagree: the structural tag that constrains
what the model writes, and the reader that finds the calls in it while they are written.
"""

from __future__ import annotations

import re
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A format of a structural tag (see `Structured.structural_tag`).
Format = dict[str, Any]

_COMPOSED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties")


@dataclass(frozen=True, slots=True)
class Tool:
    """Hold a function that the model may call.

    Attributes:
        name: as the model writes it.
        parameters: JSON Schema of its arguments, an object's.
    """

    name: str
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, parameters: Mapping[str, Any] | None) -> Tool:
        """Return a tool whose arguments are an object, without any but those its schema names.

        A schema that is put together of others, or that says `additionalProperties`, stays as it is.
        """
        schema = {"type": "object", **(parameters or {})}
        if not any(key in schema for key in _COMPOSED):
            schema.setdefault("properties", {})
            schema.setdefault("additionalProperties", False)
        return cls(name, schema)


@dataclass(frozen=True, slots=True)
class Call:
    """Say that a call of a function begins."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """Carry a fragment of the JSON text of the current call's arguments."""

    text: str


# What a reader finds, in order; a string is text that belongs to no call.
Event = str | Call | Arguments


class ToolReader(ABC):
    """Read one answer as it comes. However it is cut, the events add up to the same."""

    @abstractmethod
    def feed(self, text: str) -> list[Event]:
        """Return what more text shows. What may be the beginning of a call is held back."""

    @abstractmethod
    def finish(self) -> list[Event]:
        """Return what was held back when the answer ends."""


class ToolParser(ABC):
    """Know one format of calls. Made anew for each request.

    Args:
        special_tokens: texts of the tokenizer's special tokens; some formats have variants that differ in
            them.

    Attributes:
        markers: texts of the format that may be special tokens, which are then kept in the answer's text.
        anchored: calls are told from text by an answer's first character.
    """

    markers: tuple[str, ...] = ()
    anchored: bool = False

    def __init__(self, special_tokens: Collection[str] = ()) -> None:
        self.special_tokens = special_tokens

    @abstractmethod
    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """Return the format of one call or, with `many`, of one or more, and nothing else.

        Raises:
            ValueError: a tool's schema cannot be expressed; the message names the tool.
        """

    @abstractmethod
    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """Return the format of free text in which calls may stand, whose arguments keep to the schemas.

        Args:
            tools: that may be called.
            many: more than one call may be made.
            reserved: characters with which something else than this format begins. Only where calls are told
                from text by an answer's first character must text not begin with them.

        Raises:
            ValueError: see `calls`.
        """

    @abstractmethod
    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """Return a reader at the beginning of an answer. What calls none of the tools is text."""

    def call_id(self) -> str:
        """Return a new call's id."""
        return f"chatcmpl-tool-{uuid.uuid4().hex[:16]}"


def json_of(schema: Mapping[str, Any]) -> Format:
    """Return the format of JSON under a schema, with the blanks that Python's `json.dumps` writes.

    They are what chat templates show the models.
    """
    return {"type": "json_schema", "json_schema": dict(schema), "separators": [", ", ": "]}


def tag(begin: str, content: Format, end: str) -> Format:
    """Return the format of a content between two fixed texts."""
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def const(text: str) -> Format:
    """Return the format of a fixed text."""
    return {"type": "const_string", "value": text}


def sequence(*elements: Format) -> Format:
    """Return the format of several formats one after the other."""
    return {"type": "sequence", "elements": list(elements)}


def either(*elements: Format) -> Format:
    """Return the format of one of several formats."""
    return {"type": "or", "elements": list(elements)}


def optional(content: Format) -> Format:
    """Return the format of a content or nothing."""
    return {"type": "optional", "content": content}


def separated(tags: Sequence[Format], separator: str, *, many: bool) -> Format:
    """Return the format of one of the tags or, with `many`, of one or more with a separator between them."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not many,
    }


def triggered(triggers: Sequence[str], tags: Sequence[Format], *, many: bool) -> Format:
    """Return the format of free text in which a tag that begins with a trigger follows where that occurs."""
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": list(tags),
        "stop_after_first": not many,
    }


def text_not_beginning_with(characters: str) -> Format:
    """Return the format of free text whose first character, blanks aside, is none of the given ones."""
    return {"type": "regex", "pattern": rf"\s*([^\s{re.escape(characters)}](?s:.)*)?"}
