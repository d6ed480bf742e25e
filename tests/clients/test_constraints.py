"""Constraints: what is refused before sending, and what is found out when the answer comes."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import replace

import pytest
from pydantic import BaseModel, Field, field_validator

import myllm
from myllm.constraints import check, parsed, schema_of
from myllm.errors import ConstraintNotEnforced, InvalidParameterError
from myllm.params import build
from myllm.types import ChatCompletion, Completion, ParsedChat
from myllm.wire import Call, ServerInfo

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}
VLLM = ServerInfo(dialect="vllm", version=(0, 32, 0))


def chat(text: str | None, finish: str | None = "stop", **message) -> ChatCompletion:
    return ChatCompletion.model_validate(
        {
            "choices": [
                {
                    "message": {"content": text, **message},
                    "finish_reason": finish,
                    "stop_reason": None,
                }
            ]
        }
    )


def completion(*texts: str, finish: str = "stop", **choice) -> Completion:
    return Completion.model_validate(
        {
            "choices": [
                {"index": i, "text": text, "finish_reason": finish, **choice} for i, text in enumerate(texts)
            ]
        }
    )


def call(kind: str = "chat", extra_body: dict | None = None, prompt: str | None = None, **params) -> Call:
    messages = [{"role": "user", "content": "x"}] if kind == "chat" else None
    return Call(
        kind=kind,
        model="m",
        params=build(params),
        messages=messages,
        prompt=prompt,
        extra_body=extra_body or {},
    )


@pytest.mark.parametrize(
    ("params", "good", "bad", "words"),
    [
        ({"json_schema": PERSON}, '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": "3"}', "at `age`: '3' is not of type 'integer'"),
        ({"json_schema": PERSON}, ' {"age": 0, "name": ""}\n', "Ann is three.", "not JSON"),
        ({"json_schema": PERSON}, '{"name": "Ann", "age": 3, "x": 1}', '{"name": "Ann"}', "at `the top`: 'age' is a required property"),
        ({"regex": r"\d{3}-\d{4}"}, "555-1234", "555-1234 is it", "does not match"),
        ({"regex": "^yes|no$"}, "yes", "yesno", "does not match"),
        ({"choice": ["yes", "no"]}, "no", " no", "none of ['yes', 'no']"),
        ({"response_format": {"type": "json_object"}}, '{"a": 1}', "[1]", "no JSON object"),
        ({"response_format": {"type": "json_object", "schema": PERSON}}, '{"name": "a", "age": 1}', '{"b": 1}', "required"),
        ({"regex": "a.{3}"}, "a\n\nb", "ab", "does not match"),  # xgrammar's dot is any character
        ({"regex": "(.|~){3}"}, "\n😀\ud83d", "abcd", "does not match"),  # half a pair is a character, too
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}, '{"name": "a", "age": 1}', "{}", "required"),
    ],
)  # fmt: skip
def test_an_answer_is_judged(params, good, bad, words):
    check(call(**params), chat(good), VLLM)
    with pytest.raises(ConstraintNotEnforced) as caught:
        check(call(**params), (answer := chat(bad)), VLLM)
    assert words in str(caught.value)
    assert (caught.value.answer, caught.value.index, caught.value.text) == (answer, 0, bad)
    with pytest.raises(ConstraintNotEnforced):
        check(call("completion", prompt="p", **params), completion(bad))


@pytest.mark.parametrize(
    ("params", "begun", "astray"),
    [
        ({"choice": ["definitely", "never"]}, "defin", "I am sorry, but"),
        ({"json_schema": PERSON}, '\n{"na', "Ann is"),
        ({"response_format": {"type": "json_object"}}, "", "```json"),
        ({"json_schema": {"type": "number"}}, "12", "About 12"),
    ],
)
def test_a_cut_off_answer_is_right_while_it_could_become_so(params, begun, astray):
    """A server that ignores a constraint often goes on until `max_tokens`."""
    check(call(**params), chat(begun, "length"), VLLM)
    with pytest.raises(ConstraintNotEnforced, match="begin"):
        check(call(**params), chat(astray, "length"), VLLM)


def test_each_choice_is_judged():
    with pytest.raises(ConstraintNotEnforced) as caught:
        check(call("completion", prompt="p", choice=["a"], n=3), completion("a", "a", "b"))
    assert caught.value.index == 2


@pytest.mark.parametrize(
    ("wanted", "answer"),
    [
        (call(json_schema=PERSON), chat('{"name": "An', "length")),
        (call(json_schema=PERSON), chat(None, "tool_calls", tool_calls=[{"id": "1", "function": {"name": "f"}}])),
        (call(json_schema=PERSON), chat("", "stop", tool_calls=[{"id": "1", "function": {"name": "f"}}])),
        (call(json_schema=PERSON), chat(None, "content_filter")),
        (call(grammar='root ::= "a"'), chat("b")),
        (call(response_format={"type": "text"}), chat("b")),
        (call(), chat("b")),
        (call("completion", prompt="p", regex=r"\p{Lu}+"), completion("abc")),  # Rust's, no Python
        (call("completion", prompt="p", regex="[[:digit:]]+"), completion("abc")),  # POSIX: other in Python
        (call("completion", prompt="p", choice=["ab"], stop="b"), completion("a", stop_reason="b")),
        (call("completion", prompt="p", choice=["ab"], stop="b"), completion("a")),  # nobody said why
        (call(json_schema={"type": "string", "pattern": r"\p{Lu}"}), chat('"a"')),
        (call(extra_body={"guided_json": "no schema"}), chat("{}")),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_let_through(wanted, answer):
    check(wanted, answer, VLLM)


def test_a_pattern_that_would_hang_python_is_judged_at_once():
    begun = time.monotonic()
    check(call(regex="(a+)+b"), chat("a" * 5000 + "b"))
    for regex in ("(a+)+b", "(a|a)*b", "(a*)*b"):
        with pytest.raises(ConstraintNotEnforced):
            check(call(regex=regex), chat("a" * 5000 + "!"))
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "choice",
    [
        {"stop_reason": 1228},  # as vLLM says which token it was
        {"stop_reason": "}"},
        {},  # nobody said why
    ],
)
def test_what_a_stop_cut_off_must_have_begun_right(choice):
    wanted = call("completion", prompt="p", json_schema=PERSON, stop="}", stop_token_ids=[1228])
    check(wanted, completion('{"name": "A"', **choice))
    with pytest.raises(ConstraintNotEnforced, match="does not begin like JSON"):
        check(wanted, completion("Sure thing", **choice))
    with pytest.raises(ConstraintNotEnforced, match="not JSON"):
        check(wanted, completion('{"name": "A"', stop_reason=7))


@pytest.mark.parametrize("told", [{"stop_reason": None}, {}])
def test_a_stream_with_stop_strings_is_judged_like_the_whole(wire, told):
    events = [
        {"index": 0, "delta": {"content": "ab"}, "finish_reason": None, "stop_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop", **told},
    ]
    wire.streams(*(f"data: {json.dumps({'choices': [event]})}\n\n" for event in events), "data: [DONE]\n\n")
    with myllm.Client(wire.url, dialect="sglang", model="m") as client:
        if told:
            with pytest.raises(ConstraintNotEnforced):
                client.stream_chat("x", choice=["abc"], stop=["c"]).final()
        else:
            assert client.stream_chat("x", choice=["abc"], stop=["c"]).final().text == "ab"


def test_a_beginning_that_the_server_repeats_is_no_part_of_the_answer():
    begun = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Answer: "}]
    wanted = replace(call(choice=["yes", "no"]), messages=begun)
    for text in ("no", "Answer: no"):
        check(wanted, chat(text))
    with pytest.raises(ConstraintNotEnforced) as caught:
        check(wanted, chat("Answer: never"))
    assert caught.value.text == "never"


def test_an_answer_that_is_all_reasoning_gets_the_hint_for_it():
    with pytest.raises(ConstraintNotEnforced, match="enable_thinking"):
        check(call(choice=["a"]), chat(None, reasoning="hm"), VLLM)


def test_a_server_that_ignored_a_constraint_is_asked_anew_what_it_is(wire):
    versions = ["0.11.0", "0.12.0"]

    def handler(seen, reply):
        if seen.path == "/v1/models":
            reply.json({"data": [{"id": "m", "owned_by": "vllm"}]})
        elif seen.path == "/version":
            reply.json({"version": versions.pop(0)})
        else:
            text = "a" if "structured_outputs" in seen.body else "unconstrained"
            reply.json({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]})

    wire.handler = handler
    with myllm.Client(wire.url, model="m") as client:
        with pytest.raises(ConstraintNotEnforced):
            client.chat("x", choice=["a"])
        assert client.chat("x", choice=["a"]).text == "a"


def test_a_stop_string_that_ended_nothing_is_no_excuse():
    with pytest.raises(ConstraintNotEnforced):
        check(call("completion", prompt="p", choice=["ab"], stop="x"), completion("a", stop_reason=None))


def test_an_echoed_prompt_is_not_judged():
    wanted = call("completion", prompt="Is it? ", choice=["yes"], echo=True)
    check(wanted, completion("Is it? yes"))
    with pytest.raises(ConstraintNotEnforced):
        check(wanted, completion("Is it? no"))


@pytest.mark.parametrize(
    ("server", "extra_body", "words"),
    [
        (VLLM, {"guided_choice": ["yes"]}, "vllm#53975"),
        (ServerInfo(dialect="vllm", version=(0, 11, 2)), {"guided_choice": ["yes"]}, "look at its log"),
        (ServerInfo(dialect="vllm"), None, "did not tell its version"),
        (ServerInfo(dialect="openai"), None, "`dialect=`"),
        (ServerInfo(dialect="sglang"), None, "look at its log"),
        (None, None, "look at its log"),
    ],
)
def test_the_hint_knows_the_server(server, extra_body, words):
    """vLLM 0.12 and later answers `guided_choice` with 200 and free text (vllm#53975)."""
    wanted = call(extra_body=extra_body) if extra_body else call(choice=["yes"])
    with pytest.raises(ConstraintNotEnforced) as caught:
        check(wanted, chat("free text"), server)
    assert words in caught.value.hint


@pytest.mark.parametrize(
    "extra_body",
    [
        {"guided_json": PERSON},
        {"guided_json": json.dumps(PERSON)},
        {"structured_outputs": {"json": PERSON}},
        {"response_format": {"type": "json_object"}},
        {"guided_regex": "a"},
    ],
)
def test_constraints_in_the_extra_body_are_judged_too(extra_body):
    with pytest.raises(ConstraintNotEnforced):
        check(call(extra_body=extra_body), chat("free text"), VLLM)


# --- schemas -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "at `type`: 'strin' is not valid"),
        ({"properties": {"a": {"minimum": "x"}}}, "at `properties.a.minimum`"),
        ("{", "not JSON"),
        ("[1]", "must be a mapping"),
        (5, "must be a mapping"),
        (dict, "no pydantic model class"),
        ({"const": {1, 2}}, "has no JSON"),
        ({"$ref": "#/$defs/a"}, "'#/$defs/a' leads to nothing"),
        ({"$ref": "https://example.com/person.json"}, "leads to nothing inside"),
        ({"properties": {"a": {"items": {"$ref": "file:///etc/hostname"}}}}, "leads to nothing inside"),
    ],
)
def test_an_invalid_schema_is_refused_before_anything_is_sent(schema, words):
    with pytest.raises(InvalidParameterError) as caught:
        build({"json_schema": schema})
    assert words in str(caught.value)
    assert caught.value.param == "json_schema"


def test_a_remote_reference_is_never_fetched(monkeypatch):
    def connect(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    for keyword in ("$ref", "$dynamicRef"):
        with pytest.raises(InvalidParameterError, match="nothing is ever fetched"):
            build({"json_schema": {keyword: "http://127.0.0.1:1/schema.json"}})
    # In an `extra_body` nobody refuses it, and still nothing is fetched.
    remote = {"guided_json": {"$ref": "http://127.0.0.1:1/schema.json"}}
    check(call(extra_body=remote), chat("{}"), VLLM)


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"},
        {"$id": "https://example.com/root", "$defs": {"a": {"$id": "item", "type": "integer"}}, "$ref": "item"},
        {"$defs": {"a": {"$anchor": "here", "type": "integer"}}, "$ref": "#here"},
        {"enum": [1], "examples": [{"$ref": "https://example.com/no-reference"}]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "integer"}}, "$ref": "#/definitions/a"},
    ],
)  # fmt: skip
def test_references_inside_of_the_schema_are_followed(schema):
    check(call(json_schema=schema), chat("1"))
    with pytest.raises(ConstraintNotEnforced):
        check(call(json_schema=schema), chat('"x"'))


def test_a_schema_may_be_a_dict_its_json_or_a_class():
    assert build({"json_schema": json.dumps(PERSON)}).json_schema == PERSON
    assert build({"json_schema": Person}).json_schema == Person.model_json_schema() == schema_of(Person)


def test_a_schema_nested_too_deeply_is_an_error_of_ours():
    schema: dict = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidParameterError, match="json_schema"):
        build({"json_schema": schema})


# --- parsed ------------------------------------------------------------------------------------------------


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)

    @field_validator("name")
    @classmethod
    def _no_shouting(cls, value: str) -> str:
        if value.isupper():
            raise ValueError("do not shout")
        return value


def test_parsed_is_the_answer_with_its_object():
    answer = chat('{"name": "Ann", "age": 3}')
    answer._raw, answer._request_id = {"id": 1}, "r"
    read = parsed(Person, answer)
    assert isinstance(read, ParsedChat)
    assert read.parsed == Person(name="Ann", age=3)
    assert (read.text, read.raw, read.request_id) == (answer.text, {"id": 1}, "r")
    assert read.model_dump() == answer.model_dump()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (chat('{"name": "An', "length"), "max_tokens"),
        (chat('{"name": "ANN", "age": 3}'), "do not shout"),
        (chat('{"name": "Ann", "age": -1}'), "at `age`"),
        (chat(None, "stop", refusal="I will not."), "I will not."),
        (chat(None, "stop", reasoning_content="hm"), "reasoning"),
        (chat("no"), "Invalid JSON"),
    ],
)
def test_what_does_not_parse_is_told(answer, words):
    with pytest.raises(ConstraintNotEnforced) as caught:
        parsed(Person, answer)
    assert words in str(caught.value)
    assert "`Person`" in str(caught.value)
    assert caught.value.answer is answer


# --- a real server -----------------------------------------------------------------------------------------


BOUNDED = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "maximum": 99, "minimum": 0},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("constraint", "judge"),
    [
        ({"json_schema": BOUNDED}, lambda text: Person.model_validate_json(text)),
        ({"regex": "[a-c]{3}-[0-9]{2}"}, lambda text: re.fullmatch("[a-c]{3}-[0-9]{2}", text)),
        ({"choice": ["definitely", "never"]}, lambda text: text in ("definitely", "never")),
        (
            {"grammar": 'root ::= "SELECT " [a-z] " FROM t"'},
            lambda text: re.fullmatch("SELECT [a-z] FROM t", text),
        ),
    ],
    ids=["json_schema", "regex", "choice", "grammar"],
)
def test_a_real_server_obeys_every_spelling(server, constraint, judge):
    with myllm.Client(server.url, temperature=0.0, max_tokens=64) as client:
        for text in (
            client.chat("Describe a person, or say yes.", **constraint).text,
            client.complete("A person: ", **constraint).text,
        ):
            assert judge(text), text
