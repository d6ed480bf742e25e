"""Constraints: what is generated matches, whatever the model would rather say."""

from __future__ import annotations

import functools
import json
import logging
import re
import threading

import jsonschema
import pytest

from myllm_engine import InvalidRequestError, Request, RequestOutput, SamplingParams, Structured
from myllm_engine.errors import ConstraintError
from myllm_engine.structured import GrammarCompiler
from myllm_engine.structured.grammar import to_grammar

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
        for seed in range(5)
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
    # EOS is all that is left from the beginning.
    assert generate(Structured.regex("()"), min_tokens=2, temperature=1.0, seed=1, logprobs=1) == ("", "stop")


def test_min_tokens_and_stop_tokens_cannot_break_it(engine, generate):
    digits = [engine.tokenizer.encode(digit)[0] for digit in "0123456789"]
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 1, "logprobs": 1}):
        text, finish = generate(
            Structured.regex("[0-9]"), min_tokens=2, max_tokens=4, stop_token_ids=digits, **sampling
        )
        assert re.fullmatch("[0-9]", text)
        assert finish == "stop"


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
        lambda: Structured.json_schema("[" * 100_000),
        lambda: Structured.json_schema(
            {"enum": functools.reduce(lambda inner, _: [inner], range(100_000), [])}
        ),
        lambda: Structured.json_schema({"const": {1, 2}}),
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


# Compiles, and runs into llguidance's limits after some tokens.
HOSTILE = Structured.regex("((((((((((a?b?){30}){30}){30}c?){30}){30})+)+)+)+)x", param="guided_regex")


def test_a_grammar_at_its_limit_ends_its_own_request_only(engine, caplog):
    prompt = engine.tokenizer.encode("hello there. ")
    one = Request(
        prompt_token_ids=prompt, params=SamplingParams(structured=HOSTILE, seed=1, max_tokens=60, n=2)
    )
    free = Request(prompt_token_ids=prompt, params=SamplingParams(max_tokens=60, temperature=0.0))
    engine.add_request(one)
    engine.add_request(free)
    outputs: dict[str, list] = {one.request_id: [], free.request_id: []}
    with caplog.at_level(logging.DEBUG):
        while engine.has_unfinished():
            for output in engine.step():
                outputs[output.request_id].append(output)
    last = outputs[one.request_id][-1]
    assert last.finished
    assert isinstance(last.error, ConstraintError)
    assert last.error.param == "guided_regex"
    assert "regex is too complex" in str(last.error)
    assert [output.error for output in outputs[one.request_id][:-1]] == [None] * (
        len(outputs[one.request_id]) - 1
    )
    for index in range(2):
        text = "".join(
            part.text for out in outputs[one.request_id] for part in out.outputs if part.index == index
        )
        assert re.fullmatch("[abc]*x?", text)  # nothing unconstrained came out
    assert outputs[free.request_id][-1].outputs[0].finish_reason in ("stop", "length")
    assert engine.stats().kv_pages_free == engine.stats().kv_pages_total
    # The log names the reason, and neither the prompt, nor the answer, nor the grammar.
    (record,) = [item for item in caplog.records if item.name == "myllm_engine.structured.matcher"]
    assert len(record.getMessage()) < 120
    assert "\n" not in record.getMessage()


async def test_a_reader_gets_the_limit_as_an_exception(async_engine):
    request = Request(
        prompt_token_ids=async_engine.tokenizer.encode("hello there. "),
        params=SamplingParams(structured=HOSTILE, seed=2, max_tokens=60),
    )
    with pytest.raises(ConstraintError, match="too complex"):
        async for _ in async_engine.submit(request):
            pass
    assert async_engine.error is None


def test_a_token_that_the_grammar_refuses_is_never_emitted(engine):
    matcher = GrammarCompiler(engine.tokenizer, engine.vocab_size).matcher(Structured.regex("[0-9]"))
    (letter,) = engine.tokenizer.encode("A")
    with pytest.raises(ConstraintError):
        matcher.append(letter)


async def test_neither_the_event_loop_nor_the_engine_compiles(async_engine, monkeypatch):
    threads = []

    def spy(*arguments):
        threads.append(threading.current_thread())
        return to_grammar(*arguments)

    monkeypatch.setattr("myllm_engine.structured.compiler.to_grammar", spy)
    request = Request(
        prompt_token_ids=[1, 2], params=SamplingParams(structured=Structured.choice(["yes"]), n=3)
    )
    texts = ["", "", ""]
    async for output in async_engine.submit(request):
        for part in output.outputs:
            texts[part.index] += part.text
    assert texts == ["yes"] * 3
    (thread,) = threads  # once, for all three
    assert thread.name == "compile-grammars"


def test_a_long_chain_of_rules_does_not_overflow_the_stack(engine):
    """On a stack of the usual 8 MiB this ends the process: llguidance recurses from rule to rule."""
    rules = "".join(f'r{i}: "a" r{i + 1}\n' for i in range(3000))
    chain = Structured.grammar(f'start: r0\n{rules}r3000: "b"\n')
    prepared = engine.prepare(Request(prompt_token_ids=[1], params=SamplingParams(structured=chain)))
    assert prepared.matcher is not None


ORDER = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "state": {"enum": ["open", "paid", 3, None]},
        "price": {"type": "number", "minimum": 0, "maximum": 99.5},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "minItems": 1, "maxItems": 2},
        "when": {"type": "string", "format": "date"},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "minLength": 2, "maxLength": 9}]},
    },
    "required": ["id", "state", "price", "items", "when", "note"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "multipleOf": 5, "minimum": 1, "maximum": 40},
                "ok": {"const": True},
            },
            "required": ["n", "ok"],
            "additionalProperties": False,
        }
    },
}
DIGIT = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
CALL = {
    "format": {
        "type": "triggered_tags",
        "triggers": [" "],
        "tags": [
            {"begin": " <call>", "content": {"type": "json_schema", "json_schema": DIGIT}, "end": "</call>"}
        ],
        "stop_after_first": True,
    }
}
LARK = 'start: sum "."\nsum: NUM | sum ("+" | "-") NUM\nNUM: /[1-9][0-9]{0,2}/\n'
EBNF = 'root ::= sum "."\nsum ::= num | sum ("+" | "-") num\nnum ::= [1-9] [0-9]{0,2}'


def is_json_of(schema):
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    return lambda text: validator.is_valid(json.loads(text))


def is_sum(text):
    """Judge what `LARK` and `EBNF` say, by another implementation of their language."""
    return re.fullmatch(r"[1-9][0-9]{0,2}([+-][1-9][0-9]{0,2})*\.", text) is not None


def has_call(text):
    return re.fullmatch(r'[^ ]*( <call>\{"n":[12]\}</call>)?', text) is not None


KINDS = {
    "order": (Structured.json_schema(ORDER), is_json_of(ORDER)),
    "blanks": (Structured.json_schema(DIGIT, whitespace_pattern="[ \n]?"), is_json_of(DIGIT)),
    "regex": (
        Structured.regex(r"(\w{1,9}@[a-z]{1,9}\.(com|org))|\p{Lu}{2,4}"),
        re.compile(r"(\w{1,9}@[a-z]{1,9}\.(com|org))|[^\W\d_a-z]{2,4}").fullmatch,
    ),
    "choice": (Structured.choice(["yes", "yes please", "no"]), ["yes", "yes please", "no"].__contains__),
    "lark": (Structured.grammar(LARK), is_sum),
    "ebnf": (Structured.grammar(EBNF), is_sum),
    "tag": (Structured.structural_tag(CALL), has_call),
}


def test_what_is_complete_is_valid_in_a_mixed_batch_whose_free_texts_do_not_change(engine):
    prompt = engine.tokenizer.encode_chat([{"role": "user", "content": "Say something, as JSON perhaps."}])
    samplings = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.6, "top_p": 0.9, "seed": 7},
    ]

    def requests(kinds):
        for kind in kinds:
            structured = None if kind is None else KINDS[kind][0]
            for number, sampling in enumerate(samplings):
                params = SamplingParams(structured=structured, max_tokens=70 if kind else 12, **sampling)
                yield Request(prompt_token_ids=prompt, params=params, request_id=f"{kind} {number}")

    def run(kinds):
        results = {}
        for request in requests(kinds):
            engine.add_request(request)
        while engine.has_unfinished():
            for output in engine.step():
                assert output.error is None
                results.setdefault(output.request_id, RequestOutput("", [], [])).extend(output)
        return {name: result.outputs[0] for name, result in results.items()}

    alone = run([None])
    mixed = run([None, *KINDS])
    assert {name: mixed[name].text for name in alone} == {name: output.text for name, output in alone.items()}
    complete = {name: output for name, output in mixed.items() if output.finish_reason == "stop"}
    for kind, (_, valid) in KINDS.items():
        ended = [output.text for name, output in complete.items() if name.rsplit(" ", 1)[0] == kind]
        assert ended, kind
        assert [text for text in ended if not valid(text)] == []
