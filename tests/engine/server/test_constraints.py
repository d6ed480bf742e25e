"""OpenAI's, vLLM's (old and new) and TGI's spellings of a constraint, over HTTP."""

from __future__ import annotations

import json
import re

import pytest

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["n"],
    "additionalProperties": False,
}
OPEN = {"type": "object", "properties": {"n": False}}
TAG = {"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</n>"}
DIGIT = re.compile(r'\{"n":\d\}')


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            DIGIT,
        ),
        ("structured_outputs", {"json": SCHEMA}, DIGIT),
        ("structured_outputs", {"regex": "[ab]{3}"}, re.compile("[ab]{3}")),
        ("structured_outputs", {"choice": ["yes", "no"]}, re.compile("yes|no")),
        ("structured_outputs", {"grammar": 'root ::= "x" [0-9]'}, re.compile("x[0-9]")),
        ("guided_json", SCHEMA, DIGIT),
        ("guided_json", json.dumps(SCHEMA), DIGIT),
        ("guided_regex", "[ab]{3}", re.compile("[ab]{3}")),
        ("guided_choice", ["positive", "negative"], re.compile("positive|negative")),
        ("guided_grammar", 'start: "x" /[0-9]/', re.compile("x[0-9]")),
        (
            "structured_outputs",
            {"json": SCHEMA, "whitespace_pattern": " "},
            re.compile(r'\{ "n": ?\d ?\}|\{ ?"n" ?: ?\d ?\}'),
        ),
        ("structured_outputs", {"json": OPEN, "disable_additional_properties": True}, re.compile(r"\{\}")),
        ("response_format", {"type": "structural_tag", "format": TAG}, re.compile(r"<n>[0-9]</n>")),
    ],
)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_every_spelling_is_obeyed(http, route, field, value, pattern):
    prompt = {"messages": [{"role": "user", "content": "Hello"}]} if "chat" in route else {"prompt": "Hello"}
    reply = http.post(route, json={**prompt, field: value, "max_tokens": 30, "temperature": 0})
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    assert pattern.fullmatch(choice.get("text") or choice["message"]["content"])
    assert choice["finish_reason"] == "stop"


TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": " <n>", "schema": SCHEMA, "end": "</n>"}],
    "triggers": [" "],
}


@pytest.mark.parametrize(
    "fields", [{"structured_outputs": {"structural_tag": TAGS}}, {"response_format": TAGS}]
)
def test_tags_are_obeyed_in_free_text(http, fields):
    """No text of several words gets by without the trigger, a blank."""
    body = {"prompt": "Once upon a time", "max_tokens": 30, "temperature": 0, **fields}
    text = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
    assert re.match(r'[^ ]* <n>\{"n":\d\}</n>', text)


def test_json_object_and_text(http):
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    free = http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    text = http.post("/v1/chat/completions", json={**body, "response_format": {"type": "text"}}).json()
    assert text["choices"][0]["message"]["content"] == free
    made = http.post("/v1/chat/completions", json={**body, "response_format": {"type": "json_object"}}).json()
    assert made["choices"][0]["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ({"type": "regex", "value": "[ab]{3}"}, re.compile("[ab]{3}")),
        ({"type": "json", "value": SCHEMA}, DIGIT),
        ({"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}, DIGIT),
    ],
)
def test_tgi_s_grammar(http, grammar, pattern):
    reply = http.post(
        "/generate", json={"inputs": "Hello", "parameters": {"grammar": grammar, "max_new_tokens": 30}}
    )
    assert reply.status_code == 200, reply.text
    assert pattern.fullmatch(reply.json()["generated_text"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guided_regex": "a", "guided_choice": ["x"]}, "one constraint only"),
        ({"guided_regex": "("}, "cannot be enforced"),
        ({"structured_outputs": {"json": {"uniqueItems": True, "type": "array"}}}, "uniqueItems"),
        ({"structured_outputs": {"regx": "a"}}, "did you mean `regex`"),
        ({"response_format": {"type": "json_schema"}}, "`json_schema` with a `schema` is required"),
        ({"response_format": {"type": "jsn"}}, "json_object"),
        ({"guided_choice": []}, "`guided_choice`"),
        ({"structured_outputs": {"choice": ["x" * 300_000]}}, "The choice is too large"),
        ({"guided_regex": "x" * 300_000}, "The regex is too large"),
        ({"guided_json": {"title": "x" * 300_000}}, "The json schema is too large: it has 3000"),
        ({"guided_grammar": 'root ::= "x"' + " " * 300_000}, "The grammar is too large"),
    ],
)
def test_a_bad_constraint_is_a_400_that_says_why(http, fields, words):
    reply = http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 3, **fields})
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "grammar",
    [{"type": "regex", "value": "x" * 300_000}, {"type": "json", "value": {"title": "x" * 300_000}}],
)
def test_tgi_refuses_a_large_grammar(http, grammar):
    reply = http.post("/generate", json={"inputs": "Hello", "parameters": {"grammar": grammar}})
    assert reply.status_code == 422
    assert "is too large" in reply.json()["error"]
