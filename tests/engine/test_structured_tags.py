"""Structural tags: free text but for the tagged parts, and nothing else where a trigger stands."""

from __future__ import annotations

import json
import re

import pytest

from myllm_engine.constraint import Structured
from myllm_engine.errors import InvalidRequestError
from myllm_engine.structured import GrammarCompiler

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOLS = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<function=weather>", "schema": WEATHER, "end": "</function>"},
        {
            "begin": "<function=time>",
            "schema": {"type": "object", "additionalProperties": False},
            "end": "</function>",
        },
        {"begin": "[n]", "schema": {"type": "integer"}, "end": ""},
    ],
    "triggers": ["<function=", "[n"],
}


def json_of(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": schema}


def tag(begin: str, content: dict, end: str) -> dict:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


NUMBER = tag("<n>", {"type": "regex", "pattern": "[0-9]+/[0-9]"}, "</n>")
LETTER = tag("<l>", {"type": "grammar", "grammar": 'root ::= [a-z] "-"'}, "</l>")
THINK = tag("<think>", {"type": "any_text"}, "</think>")


@pytest.fixture(scope="module")
def matches(tokenizer):
    """Return a function that says whether a structural tag takes a text, and takes it as complete."""
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    (eos,) = tokenizer.eos_token_ids

    def run(document: dict, text: str) -> bool:
        matcher = compiler.matcher(Structured.structural_tag(document))
        for token_id in tokenizer.encode(text):
            # Not the mask: the model may be made to write a text in other tokens.
            if matcher.raw.try_consume_tokens([token_id]) == 0:
                return False
        return bool(matcher.allowed()[eos])

    yield run
    compiler.close()


@pytest.mark.parametrize(
    ("document", "yes", "no"),
    [
        (
            TOOLS,
            [
                "",
                "Hello <fun> {",
                '<function=weather>{"city":"Ulm"}</function>',
                'Let me see. <function=weather>{"city":"Ulm"}</function> and <function=time>{}</function>!\n[n]12',
            ],
            [
                "See <function=",
                "See <function=wind>",
                '<function=weather>{"town":"Ulm"}</function>',
                '<function=time>{}</function> <function=weather>{"city":1}</function>',
                "[n]x",
                "[nn",
            ],
        ),
        (
            {"format": {"type": "triggered_tags", "triggers": ["<"], "tags": [NUMBER, LETTER]}},
            ["a", "a <n>12/3</n> b <l>x-</l>"],
            ["a < b", "<n>1</n>", "<l>x</l>"],
        ),
        (
            {
                "format": {
                    "type": "triggered_tags",
                    "triggers": ["<n"],
                    "tags": [NUMBER],
                    "at_least_one": True,
                }
            },
            ["<n>1/2</n>", "<n>1/2</n> <m <n>1/2</n>"],
            ["", "a <n>1/2</n>", "<n>1/2</n> <n>"],
        ),
        (
            {
                "format": {
                    "type": "triggered_tags",
                    "triggers": ["<n"],
                    "tags": [NUMBER],
                    "stop_after_first": True,
                }
            },
            ["", "a", "a <n>1/2</n>"],
            ["a <n>1/2</n> ", "<n>1"],
        ),
        (
            {"format": {"type": "sequence", "elements": [THINK, json_of(WEATHER)]}},
            ['<think>so {"city" it\nis</think>{"city":"Ulm"}'],
            ["<think>", "<think></think>", '{"city":"Ulm"}', '<think></think> {"city":"Ulm"}'],
        ),
        (
            {
                "format": {
                    "type": "tags_with_separator",
                    "tags": [NUMBER, LETTER],
                    "separator": ", ",
                    "at_least_one": True,
                }
            },
            ["<n>1/2</n>", "<l>x-</l>, <n>1/2</n>, <n>3/4</n>"],
            ["", "<l>x-</l><n>1/2</n>", "<l>x-</l>, "],
        ),
        (
            {"format": {"type": "or", "elements": [{"type": "const_string", "value": 'no "\\n'}, NUMBER]}},
            ['no "\\n', "<n>1/2</n>"],
            ["", "no", "<n>1/2</n>no"],
        ),
        (
            {
                "format": {
                    "type": "sequence",
                    "elements": [
                        {"type": "optional", "content": tag("(", {"type": "any_text"}, ")")},
                        {
                            "type": "tags_with_separator",
                            "tags": [NUMBER],
                            "separator": "",
                            "at_least_one": True,
                        },
                    ],
                }
            },
            ["<n>1/2</n>", "(so <n> it is)<n>1/2</n><n>3/4</n>"],
            ["", "(so it is)", "(so it is <n>1/2</n>"],
        ),
        (
            {"format": {"type": "sequence", "elements": [tag("", {"type": "any_text"}, "</think>"), NUMBER]}},
            ["so</think><n>1/2</n>", "</think><n>1/2</n>"],
            ["<n>1/2</n>", "so</think>"],
        ),
        # Keys of our own.
        (
            {"format": {**json_of(PAIR), "separators": [", ", ": "]}},
            ['{"a": 1, "b": [2, 3]}'],
            ['{"a":1,"b":[2,3]}', '{"a": 1, "b": [2,3]}', '{"a": 1,  "b": [2, 3]}'],
        ),
        (
            {"format": {**json_of(PAIR), "whitespace_pattern": "[ ]{0,2}"}},
            ['{"a":1,"b":[2,3]}', '{ "a" :  1, "b":[2, 3] }'],
            ['{   "a":1,"b":[2,3]}'],
        ),
        (
            {
                "format": {
                    "type": "sequence",
                    "elements": [
                        {"type": "any_tokens", "exclude_tokens": ["<repo_name>", 30], "max_tokens": 3},
                        {"type": "const_string", "value": "<repo_name>"},
                        NUMBER,
                    ],
                }
            },
            ["<repo_name><n>1/2</n>", "one two three<repo_name><n>1/2</n>"],
            [
                "one two three four<repo_name><n>1/2</n>",
                "one<file_sep><repo_name><n>1/2</n>",
                "one.<repo_name><n>1/2</n>",
                "one<repo_name>",
            ],
        ),
        ({"format": {"type": "any_text", "excludes": [], "max_tokens": None}}, ["a"], []),
        # Special tokens stand for themselves, and nowhere else.
        (
            {
                "structures": [{"begin": "<|im_start|>call ", "schema": WEATHER, "end": "<|im_start|>"}],
                "triggers": ["<|im_start|>"],
            },
            ["a", 'a <|im_start|>call {"city":"Ulm"}<|im_start|> b'],
            ["<|im_start|>user", 'a <|im_start|>call {"city":"Ulm"}', "<|endoftext|>"],
        ),
    ],
)
def test_what_a_tag_takes(matches, document, yes, no):
    assert [text for text in yes if not matches(document, text)] == []
    assert [text for text in no if matches(document, text)] == []
    assert [text for text in yes if not matches(json.loads(json.dumps(document)), text)] == []


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"type": "structural_tag"}, "it needs `format`, or `structures` and `triggers`"),
        ({"structures": [{"begin": "<a>"}], "triggers": ["<"]}, "`structures[0]`: `schema` is missing"),
        ({**TOOLS, "triggers": ["<x"]}, "`structural_tag.tags[0]`: '<function=weather>' begins with none of"),
        ({**TOOLS, "triggers": ["<function=", "[n", "<x"]}, "no tag begins with the trigger '<x'"),
        ({**TOOLS, "triggers": []}, "`triggers` must be a list of one or more"),
        ({"format": {"type": "xml"}}, "`format`: the type 'xml' is not one of any_text, any_tokens"),
        (
            {"format": {"type": "sequence", "elements": [{"type": "any_text"}, NUMBER]}},
            "`format.elements[0]`: any_text ends with free text",
        ),
        ({"format": tag("<n>", {"type": "regex", "pattern": "("}, "")}, "unclosed group"),
        (
            {"format": {"type": "any_text", "excludes": ["x"]}},
            "`format`: any_text has no 'excludes' here; it has type",
        ),
        ({"format": {**NUMBER, "ends": ["a"]}}, "tag has no 'ends' here; it has type, begin, content, end"),
        ({"format": {"type": "any_tokens", "max_tokens": -1}}, "`max_tokens` must be a number up to"),
        (
            {"format": {"type": "any_tokens", "exclude_tokens": ["x"]}},
            "'x' is neither the id of a token nor the text of a special",
        ),
        (
            {"format": tag("<n>", {"type": "grammar", "grammar": "root ::= a"}, "")},
            "line 1: there is no rule `a`",
        ),
        ({"format": json_of({"uniqueItems": True, "type": "array"})}, "uniqueItems"),
        ({"format": {**json_of(PAIR), "separators": [","]}}, "`separators` must hold two strings"),
        ({"format": {**json_of(PAIR), "separators": 5}}, "`separators` must be a list"),
        (
            {"format": tag("", {"type": "regex", "pattern": ""}, "")},
            "`pattern` must be a string, not empty",
        ),
    ],
)
def test_a_faulty_tag_says_where(matches, document, words):
    with pytest.raises(InvalidRequestError, match=re.escape(words)):
        matches(document, "")


@pytest.mark.parametrize("value", ["{", [1], "[]", None])
def test_what_is_no_object_is_refused_at_once(value):
    with pytest.raises(InvalidRequestError, match="`structured`"):
        Structured.structural_tag(value)
