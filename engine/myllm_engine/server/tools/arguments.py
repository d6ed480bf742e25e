"""Take a schema of arguments apart, for the formats that write one argument after the other."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .parser import Tool

_DEFINITIONS = ("$defs", "definitions")
# What may stand in an object's schema beside its properties without saying more about the arguments.
_HARMLESS = frozenset(
    {
        "$comment",
        "$id",
        "$schema",
        "additionalProperties",
        "default",
        "description",
        "examples",
        "properties",
        "required",
        "strict",
        "title",
        "type",
        *_DEFINITIONS,
    }
)


@dataclass(frozen=True, slots=True)
class Argument:
    """Hold one argument of a function.

    Attributes:
        name: of the argument.
        schema: JSON Schema of its value, which needs no other document.
        required: it cannot be left out.
    """

    name: str
    schema: Mapping[str, Any]
    required: bool


def split(tool: Tool) -> list[Argument] | None:
    """Return a tool's arguments, or None when its schema says more than each argument's own schema can.

    Arguments that the schema allows without naming them are left out.
    """
    schema = tool.parameters
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    if schema.keys() - _HARMLESS or not isinstance(properties, Mapping) or not isinstance(required, list):
        return None
    if any(name not in list(properties) for name in required):
        return None
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    arguments = []
    for name, value in properties.items():
        own = {} if value is True else value
        if not isinstance(own, Mapping) or not _within(own):
            return None
        arguments.append(Argument(name, {**definitions, **own}, name in required))
    return arguments


def _within(schema: Any) -> bool:
    """Tell whether every reference in a schema leads to the definitions, which go with each argument."""
    if isinstance(schema, Mapping):
        target = schema.get("$ref")
        if isinstance(target, str) and not target.startswith(tuple(f"#/{key}/" for key in _DEFINITIONS)):
            return False
        return all(_within(value) for value in schema.values())
    return not isinstance(schema, list) or all(map(_within, schema))


def json_text(literal: str) -> str | None:
    """Return the JSON of a value that is written in JSON or in Python, or None when it is neither."""
    literal = literal.strip()
    try:
        json.loads(literal, parse_constant=_refuse)
        return literal
    except (ValueError, RecursionError):
        pass
    try:
        value = _value(ast.parse(literal, mode="eval").body)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _value(node: ast.expr) -> Any:
    """Return the value of a Python literal, in which JSON's words may stand."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.Name(id="true" | "false" | "null" as word):
            return json.loads(word)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_value(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError(f"not a literal: {type(node).__name__}")
