"""Say what a completion's text must look like. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Structured:
    """Constrain the text of a completion; the constructors below take what users have.

    Attributes:
        kind: what `value` is.
        value: a JSON Schema as JSON; a regular expression in Rust's syntax, for the whole text; a JSON list
            of strings, one of which is the text; a grammar in Lark's notation or in EBNF; or a structural tag
            as JSON.
        param: the request's field it came from, for messages.
        whitespace: of "json_schema": a regular expression for what may stand between JSON's tokens; None:
            nothing may.
    """

    kind: Literal["json_schema", "regex", "choice", "grammar", "structural_tag"]
    value: str
    param: str = field(default="structured", compare=False)
    whitespace: str | None = None

    @classmethod
    def json_schema(
        cls,
        schema: Mapping[str, object] | str,
        *,
        whitespace_pattern: str | None = None,
        disable_additional_properties: bool = False,
        param: str = "structured",
    ) -> Structured:
        """Constrain the text to JSON that is valid under a schema, given as an object or as JSON.

        Args:
            schema: the JSON Schema.
            whitespace_pattern: what may stand between JSON's tokens; None: the text is compact.
            disable_additional_properties: allow only named properties, in objects that don't say
                `additionalProperties` (as in vLLM).
            param: the request's field it came from, for messages.
        """
        document = _json_object(schema, "JSON Schema", param)
        if disable_additional_properties:
            document = _without_additional_properties(document)
        if whitespace_pattern is not None:
            _nonempty(whitespace_pattern, param)
        return cls("json_schema", _as_json(document, param), param, whitespace_pattern)

    @classmethod
    def json_object(cls, *, param: str = "structured") -> Structured:
        """Constrain the text to any JSON object."""
        return cls.json_schema({"type": "object"}, param=param)

    @classmethod
    def regex(cls, pattern: str, *, param: str = "structured") -> Structured:
        """Constrain the text to match a regular expression from its first character to its last."""
        return cls("regex", _nonempty(pattern, param), param)

    @classmethod
    def choice(cls, choices: Sequence[str], *, param: str = "structured") -> Structured:
        """Constrain the text to be one of several."""
        strings = isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) > 0
        if not strings or not all(isinstance(item, str) and item for item in choices):
            raise InvalidRequestError(
                f"`{param}` must be a list of one or more non-empty strings; got {choices!r}", param=param
            )
        return cls("choice", json.dumps(list(choices)), param)

    @classmethod
    def grammar(cls, text: str, *, param: str = "structured") -> Structured:
        """Constrain the text by a context-free grammar, in Lark's notation or in EBNF (llama.cpp's GBNF)."""
        return cls("grammar", _nonempty(text, param), param)

    @classmethod
    def structural_tag(cls, tag: Mapping[str, object] | str, *, param: str = "structured") -> Structured:
        """Leave the text free but for tagged parts, such as calls of tools.

        Args:
            tag: an object or JSON: `{"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}`, or
                XGrammar's `{"format": {...}}`. Where a trigger occurs in the text, one of the structures that
                begin with it must follow.
            param: the request's field it came from, for messages.
        """
        document = _json_object(tag, "structural tag", param)
        return cls("structural_tag", _as_json(document, param), param)


def _json_object(value: object, what: str, param: str) -> Mapping[str, object]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"`{param}` is not JSON: {error}", param=param) from None
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"`{param}` must be a {what} object; got {value!r}", param=param)
    return value


def _as_json(value: object, param: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"`{param}` cannot be written as JSON: {error}", param=param) from None


def _without_additional_properties(schema: Any) -> Any:
    """Return a schema whose objects with named properties have no others, unless they say so."""
    if isinstance(schema, Mapping):
        closed = {name: _without_additional_properties(value) for name, value in schema.items()}
        if "properties" in closed or "patternProperties" in closed:
            closed.setdefault("additionalProperties", False)
        return closed
    if isinstance(schema, list):
        return [_without_additional_properties(item) for item in schema]
    return schema


def _nonempty(text: object, param: str) -> str:
    if not isinstance(text, str) or not text:
        raise InvalidRequestError(f"`{param}` must be a non-empty string; got {text!r}", param=param)
    return text
