"""Read the constraints of OpenAI's and vLLM's requests, old spellings and new, into the engine's one."""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from ...constraint import Structured
from ..errors import invalid
from ..fields import StrictModel, refusal
from ..tgi.protocol import Grammar

# TGI's own, and OpenAI's where they come with a `value`.
_TGI_TYPES = ("json", "json_object", "json_schema", "regex")


class JSONSchemaFormat(StrictModel):
    """Hold OpenAI's `response_format.json_schema`. Schemas are always enforced, `strict` or not."""

    name: str | None = None
    description: str | None = None
    # `schema` and, below, `json` are names of pydantic's own methods.
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(StrictModel):
    """Hold OpenAI's `response_format`, or TGI's, which has the constraint in `value`."""

    type: str
    json_schema: JSONSchemaFormat | None = None
    # Of vLLM's "structural_tag", in its older form and its newer one.
    structures: list[Any] | None = None
    triggers: list[Any] | None = None
    format: dict[str, Any] | None = None
    # Of TGI's.
    value: Any = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if self.type in _TGI_TYPES and (self.value is not None or self.type in ("json", "regex")):
            if self.value is None:
                raise refusal("`value` is required by this type", "value")
            return self
        if self.value is not None:
            raise refusal(f"`value` goes with the types {', '.join(_TGI_TYPES)}", "value")
        types = ("text", "json_object", "json_schema", "structural_tag")
        if self.type not in types:
            raise refusal(f"{self.type[:50]!r} is not one of {', '.join(types)}", "type")
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise refusal("`json_schema` with a `schema` is required by this type", "json_schema")
        return self


class StructuredOutputs(StrictModel):
    """Hold vLLM's `structured_outputs`: one constraint."""

    # JSON is compact here, unless `whitespace_pattern` says otherwise.
    no_effect: ClassVar[frozenset[str]] = frozenset({"disable_any_whitespace", "disable_fallback"})

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    grammar: str | None = None
    structural_tag: dict[str, Any] | str | None = None
    whitespace_pattern: str | None = None
    disable_additional_properties: bool = False


def constraint(
    response_format: ResponseFormat | None,
    structured: StructuredOutputs | None,
    guided: dict[str, Any],
    *,
    guided_whitespace_pattern: str | None = None,
) -> Structured | None:
    """Return the one constraint of a request, or None.

    Args:
        response_format: OpenAI's.
        structured: vLLM's.
        guided: the `guided_*` fields that are set, which vLLM had before 0.12 and ignores since.
        guided_whitespace_pattern: of those, what may stand between the parts of `guided_json`.

    Raises:
        InvalidRequestError: the constraint's value is of a wrong type.
        ProblemError: more than one constraint.
    """
    found: list[Structured] = []
    if response_format is not None and response_format.value is not None:
        grammar = Grammar(type=response_format.type, value=response_format.value)
        found.append(grammar.structured("response_format"))
    elif response_format is not None and response_format.type != "text":
        if response_format.type == "structural_tag":
            tag = response_format.model_dump(include={"structures", "triggers", "format"}, exclude_none=True)
            found.append(Structured.structural_tag(tag, param="response_format"))
        elif response_format.json_schema is None or response_format.type == "json_object":
            found.append(Structured.json_object(param="response_format"))
        else:
            found.append(
                Structured.json_schema(response_format.json_schema.schema_ or {}, param="response_format")
            )
    if structured is not None:
        values = {name.rstrip("_"): getattr(structured, name) for name in StructuredOutputs.model_fields}
        options = {
            "whitespace_pattern": values.pop("whitespace_pattern"),
            "disable_additional_properties": values.pop("disable_additional_properties"),
        }
        found += _each(values, "structured_outputs", **options)
    for name, value in guided.items():
        found += _each(
            {name.removeprefix("guided_"): value}, name, whitespace_pattern=guided_whitespace_pattern
        )
    if len(found) > 1:
        names = ", ".join(f"`{item.param}` ({item.kind})" for item in found)
        raise invalid(f"A request can have one constraint only; this one has {names}")
    return found[0] if found else None


def _each(values: dict[str, Any], param: str, **json_options: Any) -> list[Structured]:
    makers = {
        "json": functools.partial(Structured.json_schema, **json_options),
        "regex": Structured.regex,
        "choice": Structured.choice,
        "grammar": Structured.grammar,
        "structural_tag": Structured.structural_tag,
    }
    found = [
        makers[name](value, param=param)
        for name, value in values.items()
        if name in makers and value is not None
    ]
    if values.get("json_object"):
        found.append(Structured.json_object(param=param))
    return found
