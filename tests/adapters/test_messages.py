"""The parts of chat requests that the adapters share."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from myllm_adapters._messages import audio_part, closed, content, function_tool, text_part, tool_call


class Leaf(BaseModel):
    kind: Literal["leaf"] = "leaf"
    word: str


class Node(BaseModel):
    """A class that contains itself."""

    kind: Literal["node"] = "node"
    children: list[Annotated[Node | Leaf, Field(discriminator="kind")]] = []
    pair: tuple[Leaf, int] | None = None
    free: dict[str, Leaf] = {}
    properties: Leaf | None = None


class Open(BaseModel, extra="allow"):
    a: int


LEAF = {"kind": "leaf", "word": "x"}
NODE = {
    "kind": "node",
    "children": [LEAF, {"kind": "node", "children": []}],
    "pair": [LEAF, 1],
    "free": {"any": LEAF},
    "properties": LEAF,
}


def test_a_class_s_own_objects_are_valid_under_its_closed_schema() -> None:
    jsonschema.validate(NODE, closed(Node.model_json_schema()))


@pytest.mark.parametrize(
    "place",
    [(), ("children", 0), ("children", 1), ("pair", 0), ("free", "any"), ("properties",)],
)
def test_no_object_in_it_may_have_more_than_its_class(place: tuple[Any, ...]) -> None:
    node = json.loads(json.dumps(NODE))
    target = node
    for step in place:
        target = target[step]
    target["more"] = 1
    jsonschema.validate(node, Node.model_json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(node, closed(Node.model_json_schema()))


def test_what_says_itself_that_it_is_open_stays_so() -> None:
    jsonschema.validate({"a": 1, "b": 2}, closed(Open.model_json_schema()))
    both = {
        "allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}],
        "properties": {"c": True},
    }
    jsonschema.validate({"a": 1, "b": 2, "c": 3}, closed(both))


def test_the_schema_that_was_given_is_not_changed() -> None:
    given = Node.model_json_schema()
    before = json.dumps(given)
    closed(given)
    assert json.dumps(given) == before


@pytest.mark.parametrize(
    ("arguments", "sent"),
    [
        ('{"a": 1}', '{"a": 1}'),
        ("", "{}"),
        ('{"a": ', '{"unreadable": "{\\"a\\": "}'),
        ("[1]", '{"unreadable": "[1]"}'),
        ("ü", '{"unreadable": "ü"}'),
        ("[" * 100_000, json.dumps({"unreadable": "[" * 100_000})),
    ],
    ids=range(6),
)
def test_a_call_s_arguments_are_a_json_object(arguments: str, sent: str) -> None:
    call = tool_call("1", "f", arguments)
    assert call["function"]["arguments"] == sent
    assert isinstance(json.loads(sent), dict)


def test_contents() -> None:
    assert content([]) == ""
    assert content([text_part("a")]) == "a"
    assert content([text_part("a"), text_part("b")]) == [text_part("a"), text_part("b")]
    assert audio_part("data:audio/mpeg;base64,AAAA")["input_audio"] == {"data": "AAAA", "format": "mp3"}
    assert audio_part("data:audio/flac;base64,AAAA")["type"] == "audio_url"


def test_a_function_without_parameters_has_none() -> None:
    empty = {"type": "object", "properties": {}}
    assert function_tool("f", None, None) == {
        "type": "function",
        "function": {"name": "f", "parameters": empty},
    }
    assert function_tool("f", "F.", {"properties": {"a": {}}})["function"]["parameters"]["type"] == "object"
