"""Constraints: what is generated matches, whatever the model would rather say."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from myllm_engine import InvalidRequestError, Request, SamplingParams, Structured

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def generate(engine):
    """Run one request, together with a free one that must not notice; return its text and finish reason."""

    def run(structured: Structured, **params) -> tuple[str, str]:
        prompt = engine.tokenizer.encode_chat([{"role": "user", "content": "Tell me about John, who is 25."}])
        params = {"max_tokens": 60, "temperature": 0.0, **params}
        one = Request(prompt_token_ids=prompt, params=SamplingParams(structured=structured, **params))
        free = Request(prompt_token_ids=prompt, params=SamplingParams(max_tokens=5, temperature=0.0))
        engine.add_request(one)
        engine.add_request(free)
        text, finish = "", None
        while engine.has_unfinished():
            for output in engine.step():
                for part in output.outputs:
                    if output.request_id == one.request_id:
                        text += part.text
                        finish = part.finish_reason or finish
        return text, finish

    return run


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"temperature": 1.5, "seed": 3}, {"temperature": 1.0, "top_p": 0.5, "seed": 4}],
)
def test_json_schema(generate, sampling):
    text, finish = generate(Structured.json_schema(PERSON), **sampling)
    assert finish == "stop"
    jsonschema.validate(json.loads(text), PERSON)
    assert re.match(r'\{"name":"', text)  # compact: a small model can't write blanks for ever


def test_regex_is_for_the_whole_text(generate):
    text, finish = generate(Structured.regex(r"\d{1,3}\.\d{1,3}"), temperature=1.3, seed=1)
    assert finish == "stop"
    assert re.fullmatch(r"\d{1,3}\.\d{1,3}", text)


def test_choice(generate):
    texts = {
        generate(Structured.choice(["positive", 'neg"ative', "é"]), temperature=2.0, seed=seed)[0]
        for seed in range(8)
    }
    assert texts <= {"positive", 'neg"ative', "é"}


@pytest.mark.parametrize(
    "grammar", ['root ::= "SELECT " ("a" | "b") " FROM t"', 'start: "SELECT " ("a" | "b") " FROM t"']
)
def test_grammar_in_both_notations(generate, grammar):
    assert generate(Structured.grammar(grammar))[0] in ("SELECT a FROM t", "SELECT b FROM t")


def test_max_tokens_still_ends_it(generate):
    text, finish = generate(Structured.json_schema(PERSON), max_tokens=3)
    assert finish == "length"
    assert text.startswith('{"')


def test_min_tokens_cannot_break_it(generate):
    assert generate(Structured.choice(["yes", "no"]), min_tokens=10)[0] in ("yes", "no")


@pytest.mark.parametrize(
    ("structured", "words"),
    [
        (Structured.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (Structured.regex("("), "regex"),
        (Structured.grammar("root ::= nowhere"), "grammar"),
        (Structured.json_schema({"type": "banana"}), "json schema"),
    ],
)
def test_what_cannot_be_enforced_is_refused_before_it_runs(engine, structured, words):
    request = Request(prompt_token_ids=[1], params=SamplingParams(structured=structured))
    with pytest.raises(InvalidRequestError, match=words):
        engine.validate(request)
    with pytest.raises(InvalidRequestError):
        engine.add_request(request)
    assert not engine.has_unfinished()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Structured.json_schema("{not json"),
        lambda: Structured.json_schema([1]),
        lambda: Structured.regex(""),
        lambda: Structured.choice([]),
        lambda: Structured.choice("ab"),
        lambda: Structured.choice([1]),
        lambda: Structured.grammar(None),
    ],
)
def test_malformed_constraints_name_their_field(make):
    with pytest.raises(InvalidRequestError, match="`structured`"):
        make()


def test_a_grammar_at_its_limit_ends_its_own_request_only(generate):
    hostile = Structured.regex("(a|b|ab|aab|aba|abb|(a?b?){30}){50}c{5}(x{1,400}y{1,400}){60}")
    try:
        _, finish = generate(hostile, temperature=1.0, seed=1)
    except InvalidRequestError:
        return  # refused at once is as good
    assert finish in ("abort", "length", "stop")
    assert generate(Structured.choice(["yes"]))[0] == "yes"
