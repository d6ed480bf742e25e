"""What an answer must look like: schemas checked before they are sent, answers checked on arrival.

Some servers read a constraint's field and ignore it (vllm#53975, LocalAI#10339), so an answer is never
believed. JSON Schema is judged by `jsonschema`, without ever fetching a `$ref` from the network; a regular
expression by Rust's engine, which pydantic brings and most servers have, too: it takes linear time, where
Python's could hang for ever. Patterns that the two read otherwise are judged by nobody, nor are grammars.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaError, SchemaValidator, core_schema

from .errors import ConstraintNotEnforced, InvalidParameterError, short
from .types import ChatChoice, ChatCompletion, Completion, CompletionChoice, ParsedChat

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

    from .wire import Call, ServerInfo

ModelT = TypeVar("ModelT", bound=BaseModel)
Kind = Literal["json_schema", "json_object", "regex", "choice", "grammar"]

# Choices that are no text, or whose end says nothing about the constraint: nobody can judge them.
_UNJUDGED = frozenset(
    {"tool_calls", "function_call", "content_filter", "stop_sequence", "repetition", "abort", "error"}
)
_JSON_BEGINS = re.compile(r"\s*([\[{\"\-\dtfn]|$)")
# The servers' engines (Rust's regex, xgrammar, outlines' translation of Python's) do not read these alike:
# POSIX classes and set operations inside a class, and Rust's word boundaries.
_FOREIGN_REGEX = re.compile(r"\[\[|\[\^\[|&&|~~|--\[|\\[<>]")
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
_OLD_NAMES: dict[str, Kind] = {
    "json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constraint:
    """What one call wants its answer to look like.

    Attributes:
        kind: "json_schema", "json_object", "regex", "choice" or "grammar".
        value: the schema, None, the pattern, the list of texts, or the grammar's text.
        field: the field of `extra_body` that said so, None when it was a parameter.
    """

    kind: Kind
    value: Any = None
    field: str | None = None

    @classmethod
    def of(cls, call: Call) -> Constraint | None:
        """Return what a call is constrained to, in its parameters or its `extra_body`, or None."""
        if call.extra_body and (found := cls._in_body(call.extra_body)) is not None:
            return found  # `extra_body` is written over what the parameters say
        params = call.params
        if params.json_schema is not None:
            return cls("json_schema", params.json_schema)
        if params.regex is not None:
            return cls("regex", params.regex)
        if params.choice is not None:
            return cls("choice", params.choice)
        if params.grammar is not None:
            return cls("grammar", params.grammar)
        return None if params.response_format is None else cls._in_format(params.response_format)

    @classmethod
    def _in_format(cls, wanted: Any, field: str | None = None) -> Constraint | None:
        """Read OpenAI's `response_format`."""
        if not isinstance(wanted, dict):
            return None
        if (schema := schema_in(wanted)) is not None:
            return cls("json_schema", schema, field)
        return cls("json_object", None, field) if wanted.get("type") == "json_object" else None

    @classmethod
    def _in_body(cls, body: Any) -> Constraint | None:
        """Read vLLM's fields, new and old, and OpenAI's."""
        outputs = body.get("structured_outputs")
        for name, kind in _OLD_NAMES.items():
            if isinstance(outputs, dict) and outputs.get(name) is not None:
                return cls(kind, outputs[name], "structured_outputs")
            if body.get(f"guided_{name}") is not None:
                return cls(kind, body[f"guided_{name}"], f"guided_{name}")
        return cls._in_format(body.get("response_format"), "response_format")

    def problem(self, text: str) -> str | None:
        """Return what is wrong with a text, or None: it is right, or nobody here can judge it."""
        if self.kind == "choice":
            return None if text in self.value else f"it is none of {short(self.value)}"
        if self.kind == "regex":
            matcher = _matcher(self.value)
            # Rust's texts have no half surrogate pairs, which models do cut off.
            whole = text.encode(errors="replace").decode()
            right = matcher is None or matcher.isinstance_python(whole)
            return None if right else f"it does not match {short(self.value)}"
        if self.kind == "grammar":
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as exc:
            return f"it is not JSON ({exc})"
        if self.kind == "json_object":
            return None if isinstance(value, dict) else "it is no JSON object"
        return _violation(self.value, value)

    def early_problem(self, text: str) -> str | None:
        """Return what is wrong with the beginning of a text, however it might have gone on, or None."""
        if self.kind == "choice":
            begun = any(choice.startswith(text) for choice in self.value)
            return None if begun else f"it begins none of {short(self.value)}"
        if self.kind in ("json_schema", "json_object"):
            return None if _JSON_BEGINS.match(text) else "it does not begin like JSON"
        return None


def check(call: Call, answer: ChatCompletion | Completion, server: ServerInfo | None = None) -> None:
    """Check each choice of an answer against the call's constraint.

    A choice that `max_tokens` or the call's `stop` cut off is right as long as it could have become so. Not
    judged are tool calls, grammars, patterns that not every engine reads, and schemas whose own patterns
    Python's `re` cannot read.

    Args:
        call: what was asked.
        answer: what came.
        server: who answered, for the hint.

    Raises:
        ConstraintNotEnforced: a choice breaks the constraint.
    """
    constraint = Constraint.of(call)
    if constraint is None or constraint.kind == "grammar":
        return
    for choice in answer.choices:
        text = _judged_text(call, choice)
        if text is None:
            continue
        judge = constraint.early_problem if _is_cut(call, choice) else constraint.problem
        problem = judge(text)
        if problem is not None and (before := _repeated(call, choice)) and text.startswith(before):
            text = text.removeprefix(before)
            problem = judge(text)
        if problem is not None:
            name = constraint.field or (
                "response_format" if constraint.kind == "json_object" else constraint.kind
            )
            raise ConstraintNotEnforced(
                f"Choice {choice.index} of the answer breaks `{name}`: {problem}: {short(text)}.",
                answer=answer,
                index=choice.index,
                text=text,
                hint=_thinking(choice) or _hint(constraint, server),
            )


def _judged_text(call: Call, choice: ChatChoice | CompletionChoice) -> str | None:
    """Return the text that the constraint was for, or None when it cannot be judged."""
    if choice.finish_reason in _UNJUDGED:
        return None
    if isinstance(choice, CompletionChoice):
        return choice.text
    return None if choice.message.tool_calls or choice.message.refusal else choice.message.content or ""


def _is_cut(call: Call, choice: ChatChoice | CompletionChoice) -> bool:
    """Whether `max_tokens` or a stop of the call's ended the text, or may have: not every server tells."""
    if choice.finish_reason == "length" or isinstance(choice.stop_reason, str):
        return True
    params = call.params
    if "stop_reason" in choice.model_fields_set:
        return choice.stop_reason in (params.stop_token_ids or ())
    return bool(params.stop or params.stop_token_ids)


def _repeated(call: Call, choice: ChatChoice | CompletionChoice) -> str | None:
    """Return the text in front of an answer that is no part of it: an echo.

    llama-server echoes the beginning of its answer, a last message of the assistant's, without being asked.
    """
    if isinstance(choice, CompletionChoice):
        return call.prompt if call.params.echo and isinstance(call.prompt, str) else None
    last = call.messages[-1] if call.messages else {}
    content = last.get("content") if call.params.echo or last.get("role") == "assistant" else None
    return content if isinstance(content, str) else None


def _thinking(choice: ChatChoice | CompletionChoice) -> str | None:
    if isinstance(choice, CompletionChoice) or choice.message.content or not choice.message.reasoning:
        return None
    return (
        "The server put the whole answer into `reasoning`, and obeys the constraint in the rest alone: turn "
        "thinking off (`chat_template_kwargs={'enable_thinking': False}`), or start the server without a "
        "reasoning parser."
    )


def _hint(constraint: Constraint, server: ServerInfo | None) -> str:
    dialect, version = (server.dialect, server.version) if server else (None, None)
    if constraint.field in _GUIDED and dialect == "vllm" and (version is None or version >= (0, 12)):
        return (
            "vLLM 0.12 and later ignores the `guided_*` fields (vllm#53975): "
            f"say it as `{constraint.kind}=…`, and each server gets its own spelling."
        )
    if dialect == "vllm" and version is None:
        return (
            "The server did not tell its version, so the constraint went out as today's vLLM spells it: one "
            "older than 0.11 wants another spelling; a proxy in front must hand on `/version` and the field."
        )
    if dialect == "openai":
        return (
            "The server accepted the constraint and ignored it: name its kind with `dialect=`, if it has one."
        )
    return (
        "The server accepted the constraint and ignored it: look at its log, at its version, and whether a "
        "proxy in front drops fields."
    )


# --- schemas -----------------------------------------------------------------------------------------------


def schema_in(response_format: Mapping[str, Any]) -> Any:
    """Return the JSON Schema in a `response_format`, or None.

    OpenAI's "json_schema" holds it one level further down than "json_object" does, where llama.cpp reads one.
    """
    loose = response_format.get("type") == "json_object"
    holder = response_format if loose else response_format.get("json_schema")
    return holder.get("schema") if isinstance(holder, Mapping) else None


def schema_of(model_class: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a pydantic model class.

    Raises:
        InvalidParameterError: it is no such class, or has fields that JSON Schema cannot say.
    """
    if not (isinstance(model_class, type) and issubclass(model_class, BaseModel)):
        raise InvalidParameterError(f"{model_class!r} is no pydantic model class.", param="json_schema")
    return _schema_of(model_class)


@lru_cache(maxsize=256)
def _schema_of(model_class: type[BaseModel]) -> dict[str, Any]:
    try:
        return model_class.model_json_schema()
    except Exception as exc:  # pydantic has several, and users' own hooks raise what they like
        raise InvalidParameterError(
            f"`{model_class.__name__}` has no JSON Schema: {exc}", param="json_schema"
        ) from exc


def checked_schema(value: Any) -> dict[str, Any]:
    """Return the schema in what a user may give as `json_schema`: a dict, its JSON, or a model class.

    Raises:
        InvalidParameterError: it is no valid JSON Schema, or has a `$ref` that leads outside of it.
    """
    if isinstance(value, type):
        return schema_of(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as exc:
            raise InvalidParameterError(f"`json_schema` is not JSON: {exc}.", param="json_schema") from None
    if not isinstance(value, dict):
        raise InvalidParameterError(
            f"`json_schema={short(value)}` must be a mapping, its JSON text, or a pydantic model class.",
            param="json_schema",
        )
    _validator(_dumped(value))
    return value


def _dumped(schema: Any) -> str:
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidParameterError(f"`json_schema` has no JSON: {exc}.", param="json_schema") from None


@lru_cache(maxsize=256)
def _validator(text: str) -> Validator:
    """Return the validator of a schema's JSON, made once."""
    from jsonschema import FormatChecker
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY, specification_with

    schema, reference = json.loads(text), ""
    cls: Any = validator_for(schema, default=Draft202012Validator)
    try:
        # Formats aside: patterns are ECMAScript's, which Python would refuse where it cannot read them.
        cls.check_schema(schema, format_checker=FormatChecker(()))
        dialect = schema.get("$schema") if isinstance(schema, dict) else None
        resource = specification_with(dialect or "", default=DRAFT202012).create_resource(schema)
        # A registry without a retriever: jsonschema's own default would fetch what a `$ref` names.
        registry = EMPTY_REGISTRY.with_resource("", resource)
        for reference, resolver in _references(resource, registry.resolver_with_root(resource)):
            resolver.lookup(reference)
    except SchemaError as exc:
        raise InvalidParameterError(
            f"`json_schema` is no valid JSON Schema: at `{_place(exc.absolute_path)}`: {exc.message}.",
            param="json_schema",
        ) from None
    except Unresolvable:
        raise InvalidParameterError(
            f"`json_schema`: the `$ref` {reference!r} leads to nothing inside of the schema, and nothing is "
            "ever fetched: put what it means into `$defs`.",
            param="json_schema",
        ) from None
    except RecursionError:
        raise InvalidParameterError("`json_schema` is nested too deeply.", param="json_schema") from None
    validator: Validator = cls(schema, registry=registry)
    return validator


def _references(resource: Any, resolver: Any) -> Iterator[tuple[str, Any]]:
    """Yield each `$ref` of a schema with the resolver for its place; `enum` and the like hold none."""
    if isinstance(resource.contents, dict):
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(reference := resource.contents.get(keyword), str):
                yield reference, resolver
    for inner in resource.subresources():
        yield from _references(inner, resolver.in_subresource(inner))


def _violation(schema: Any, value: Any) -> str | None:
    from jsonschema import exceptions

    best_match: Any = exceptions.best_match  # it has no types
    try:
        if isinstance(schema, str):
            schema = json.loads(schema)
        error = best_match(_validator(_dumped(schema)).iter_errors(value))
    except (re.error, InvalidParameterError, ValueError, RecursionError):
        # A pattern that Python cannot read, or a schema of `extra_body` that is none: not ours to judge.
        return None
    return None if error is None else f"at `{_place(error.absolute_path)}`: {error.message}"


def _place(path: Any) -> str:
    return ".".join(map(str, path)) or "the top"


@lru_cache(maxsize=256)
def _matcher(regex: str) -> SchemaValidator | None:
    """Return what knows the texts that a pattern matches whole, or None when not every engine reads it.

    A dot may be a line's end, as for xgrammar: where it may not, for the server, no answer has one.
    """
    if not isinstance(regex, str) or _FOREIGN_REGEX.search(regex):
        return None
    try:
        re.compile(regex)
        return SchemaValidator(core_schema.str_schema(pattern=rf"\A(?s:{regex})\z"))
    except (re.error, SchemaError, RecursionError, OverflowError):
        return None


# --- parsed answers ----------------------------------------------------------------------------------------


def parsed(model_class: type[ModelT], answer: ChatCompletion) -> ParsedChat[ModelT]:
    """Return the answer with its first choice read as a `model_class` in `.parsed`.

    Raises:
        ConstraintNotEnforced: it was cut off, is a tool call or a refusal, or does not validate.
    """
    choice = answer.choices[0]
    text = choice.message.content or ""
    problem: str | None = None
    hint: str | None = None
    if choice.finish_reason == "length":
        problem, hint = "it was cut off", "Raise `max_tokens`: the answer needs more of them."
    elif choice.message.refusal:
        problem = f"the model refused: {short(choice.message.refusal)}"
    elif not text:
        problem = "it has no text"
        if choice.message.reasoning:
            hint = "The model spent it all on its reasoning: raise `max_tokens`, or lower `reasoning_effort`."
    else:
        try:
            value = model_class.model_validate_json(text)
        except ValidationError as exc:
            first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
            problem = f"at `{_place(first['loc'])}`: {first['msg']}"
    if problem is not None:
        raise ConstraintNotEnforced(
            f"The answer is no `{model_class.__name__}`: {problem}.",
            answer=answer,
            index=choice.index,
            text=text,
            hint=hint,
        )
    return ParsedChat.of(answer, value)
