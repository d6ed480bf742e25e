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
        (
            {"guided_choice": [f"text {i}" for i in range(2001)]},
            "it has 2001 texts, and this server compiles 2000",
        ),
        ({"structured_outputs": {"choice": ["x" * 300_000]}}, "The choice is too large"),
        ({"guided_regex": "x" * 300_000}, "The regex is too large"),
        ({"guided_json": {"title": "x" * 300_000}}, "The json schema is too large: it has 3000"),
        ({"guided_grammar": 'root ::= "x"' + " " * 70_000}, "The grammar is too large"),
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
