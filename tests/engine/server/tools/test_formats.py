"""Every format of calls: what is read from whole texts and from pieces, and what a model may write."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_engine.constraint import Structured
from myllm_engine.server.tools import Arguments, Call, PlainNamedParser, PlainParser, Tool, find
from myllm_engine.structured import GrammarCompiler

WEATHER = Tool.of(
    "get_weather",
    {
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "where": {"$ref": "#/$defs/Place"},
        },
        "required": ["city"],
        "$defs": {"Place": {"type": "object", "additionalProperties": {"type": "number"}}},
    },
)
NOW = Tool.of("now", None)
TOOLS = [WEATHER, NOW]

ULM = {"city": "Ulm", "days": 3}


def parser_of(name: str):
    """Return a parser by its name; after a slash, the special tokens of the tokenizer."""
    name, _, special = name.partition("/")
    return PlainParser() if name == "plain" else find(name)(special.split())


def read(reader, pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return the text and the calls, with the JSON text of their arguments."""
    events = [event for piece in pieces for event in reader.feed(piece)] + reader.finish()
    text, calls = "", []
    for event in events:
        if isinstance(event, Call):
            calls.append((event.name, ""))
        elif isinstance(event, Arguments):
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + event.text)
        else:
            text += event
    return text, calls


# Parser, text, the text that is left, and the calls in it.
READS = [
    ("hermes", "Good day.", "Good day.", []),
    ("hermes", " a < b, <tool> \n", " a < b, <tool> \n", []),
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm", "days": 3}}\n</tool_call>',
        "",
        [("get_weather", ULM)],
    ),
    (
        "hermes",
        'Let me see.\n<tool_call>{"arguments": {"city": "}{"}, "name":"get_weather"}</tool_call>\n\n'
        '<tool_call>\n{"name": "now"}\n</tool_call> Done.',
        "Let me see.Done.",
        [("get_weather", {"city": "}{"}), ("now", {})],
    ),
    ("hermes", '<tool_call>{"name": "now", "arguments": null}', "", [("now", {})]),
    (
        "hermes",
        '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("now", {"a": 1})],
    ),
    (
        "hermes",
        '<tool_call>{"name": "other", "arguments": {}}',
        '<tool_call>{"name": "other", "arguments": {}}',
        [],
    ),
    ("hermes", "<tool_call>now()</tool_call>", "<tool_call>now()</tool_call>", []),
    ("hermes", '<tool_call>\n{"na', '<tool_call>\n{"na', []),
    ("mistral", "Good [day].", "Good [day].", []),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Ulm", "days": 3}}, '
        '{"name": "now", "arguments": {}}]',
        "",
        [("get_weather", ULM), ("now", {})],
    ),
    (
        "mistral/[ARGS]",
        'Well. [TOOL_CALLS]get_weather[ARGS]{"city": "Ulm", "days": 3}[TOOL_CALLS]now{}',
        "Well.",
        [("get_weather", ULM), ("now", {})],
    ),
    ("mistral/[ARGS]", "[TOOL_CALLS]now[CALL_ID]abcdefghi[ARGS]{}", "", [("now", {})]),
    ("mistral", "[TOOL_CALLS]other[ARGS]{}", "[TOOL_CALLS]other[ARGS]{}", []),
    ("llama3_json", "Good {day}.", "Good {day}.", []),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Ulm", "days": 3}}; {"name": "now", "arguments": {}}',
        "",
        [("get_weather", ULM), ("now", {})],
    ),
    ("llama3_json/<|python_tag|>", '<|python_tag|>{"name": "now", "parameters": {}}', "", [("now", {})]),
    ("llama3_json", '{"name": "Ada", "age": 36}', '{"name": "Ada", "age": 36}', []),
    ("llama3_json", 'So: {"name": "now"}', 'So: {"name": "now"}', []),
    ("granite", '<tool_call>[{"name": "now", "arguments": {}}]', "", [("now", {})]),
    (
        "granite/<|tool_call|>",
        '<|tool_call|> [{"name": "now", "arguments": {}},{"name": "get_weather", "arguments": {"city": "Ulm", "days": 3}}] ok',
        "ok",
        [("now", {}), ("get_weather", ULM)],
    ),
    (
        "internlm",
        'Yes.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Ulm", "days": 3}}<|action_end|>\n',
        "Yes.",
        [("get_weather", ULM)],
    ),
    (
        "jamba",
        '<tool_calls>[\n    {"name": "now", "arguments": {}},\n    {"name": "now", "arguments": {}}\n]</tool_calls>',
        "",
        [("now", {}), ("now", {})],
    ),
    (
        "qwen3_coder",
        'I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nUlm "am"\n Münster\n</parameter>\n'
        "<parameter=days>\n3\n</parameter>\n<parameter=metric>\nTrue\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "I look.",
        [("get_weather", {"city": 'Ulm "am"\n Münster', "days": 3, "metric": True}), ("now", {})],
    ),
    (
        "qwen3_coder",
        '<function=get_weather><parameter=city>Ulm</parameter><parameter=where>{"x</parameter>": 1}</parameter></function>',
        "",
        [("get_weather", {"city": "Ulm", "where": {"x</parameter>": 1}})],
    ),
    (
        "qwen3_coder",
        "<tool_call> <function=other> </tool_call>",
        "<tool_call> <function=other> </tool_call>",
        [],
    ),
    (
        "pythonic",
        "[get_weather(city=\"Ulm\", days=3), now(), get_weather(city='(,)', metric=True, where={\"a\": -1.5, 'b': None})]",
        "",
        [
            ("get_weather", ULM),
            ("now", {}),
            ("get_weather", {"city": "(,)", "metric": True, "where": {"a": -1.5, "b": None}}),
        ],
    ),
    ("pythonic", '[get_weather(**{"city": "Ulm", "days": 3})]', "", [("get_weather", ULM)]),
    ("pythonic", "[1, 2] are two", "[1, 2] are two", []),
    ("pythonic", "[other(a=1)]", "[other(a=1)]", []),
    (
        "plain",
        '[{"name": "now", "parameters": {}}, {"name": "get_weather", "parameters": {"city": "Ulm", "days": 3}}]',
        "",
        [("now", {}), ("get_weather", ULM)],
    ),
]


@pytest.mark.parametrize(("name", "text", "rest", "calls"), READS)
def test_calls_are_read_however_the_text_is_cut(name, text, rest, calls):
    parser = parser_of(name)
    whole = read(parser.reader(TOOLS), [text])
    assert whole[0] == rest
    assert [(name, json.loads(arguments)) for name, arguments in whole[1]] == calls
    for cut in range(len(text) + 1):
        assert read(parser.reader(TOOLS), [text[:cut], text[cut:]]) == whole
    assert read(parser.reader(TOOLS), text) == whole


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_cut_of_any_text_adds_up(data):
    name, text, _, _ = data.draw(st.sampled_from(READS))
    # Damaged as well: cut off, or with something in the middle of it.
    place = data.draw(st.integers(0, len(text)))
    text = data.draw(st.sampled_from([text, text[:place], text[:place] + "<x>{[(" + text[place:], text * 2]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parser = parser_of(name)
    assert read(parser.reader(TOOLS), pieces) == read(parser.reader(TOOLS), [text])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "now", "arguments": {"a": "long'),
        ("mistral/[ARGS]", '[TOOL_CALLS]now[ARGS]{"a": "long'),
        ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nlong"),
    ],
)
def test_arguments_come_while_they_are_written(name, text):
    reader = parser_of(name).reader(TOOLS)
    events = reader.feed(text)
    assert isinstance(events[0], Call)
    assert "".join(event.text for event in events[1:]).endswith("long")
    assert reader.feed("er") == [Arguments("er")]


@pytest.fixture(scope="module")
def compiler(tokenizer):
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def takes(compiler, tokenizer):
    """Return a function that says whether a format takes a text, and takes it as complete."""
    (eos,) = tokenizer.eos_token_ids

    def run(form: dict, text: str) -> bool:
        matcher = compiler.matcher(Structured.structural_tag({"format": form}))
        for token_id in tokenizer.encode(text):
            if matcher.raw.try_consume_tokens([token_id]) == 0:
                return False
        return bool(matcher.allowed()[eos])

    return run


# Parser, one call as the model's template writes it, and calls that break the schema.
WRITES = [
    (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm", "days": 3}}\n</tool_call>',
        ['"city": "Ulm", ', '"Ulm"', "get_weather", '"days"'],
    ),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Ulm", "days": 3}}]',
        ['"city": "Ulm", ', '"Ulm"', "get_weather", '"days"'],
    ),
    (
        "mistral/[ARGS]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Ulm", "days": 3}',
        ['"city": "Ulm", ', '"Ulm"', "get_weather", '"days"'],
    ),
    (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Ulm", "days": 3}}',
        ['"city": "Ulm", ', '"Ulm"', "get_weather", '"days"'],
    ),
    (
        "granite",
        '<tool_call>[{"name": "get_weather", "arguments": {"city": "Ulm"}}]',
        ['"city": "Ulm"', "get_weather"],
    ),
    (
        "internlm",
        '<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Ulm"}}<|action_end|>',
        ['"city": "Ulm"', "get_weather"],
    ),
    (
        "jamba",
        '<tool_calls>[\n    {"name": "get_weather", "arguments": {"city": "Ulm"}}\n]</tool_calls>',
        ['"city": "Ulm"', "get_weather"],
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nUlm\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        ["<parameter=city>\nUlm\n</parameter>\n", "get_weather", "parameter=days", "3"],
    ),
    (
        "pythonic",
        '[get_weather(city="Ulm", days=3, metric=True)]',
        ['city="Ulm", ', '"Ulm"', "get_weather", "days", "True"],
    ),
]


@pytest.mark.parametrize(("name", "call", "needed"), WRITES)
def test_only_calls_under_the_schema_can_be_written(takes, name, call, needed):
    parser = parser_of(name)
    calls, free = (make(TOOLS, many=True) for make in (parser.calls, parser.free))
    assert takes(calls, call)
    assert not takes(calls, "Hello.")
    assert takes(free, call)
    assert takes(free, "Hello.")
    assert takes(free, "")
    for part in needed:
        broken = call.replace(part, "[1]", 1)
        assert not takes(calls, broken), broken
        assert not takes(free, broken), broken
    assert not takes(calls, call[:-1])


@pytest.mark.parametrize("name", [case[0] for case in WRITES] + ["plain"])
def test_whatever_may_be_written_is_read_and_valid(compiler, tokenizer, name):
    tools = [
        Tool.of(
            "book-table",
            {
                "properties": {
                    "day": {"enum": ["Mo", "Tu we"]},
                    "note": {"type": "string", "maxLength": 4},
                    "seats": {"type": "integer", "minimum": 1, "maximum": 12},
                    "vip": {"type": "boolean"},
                    "nothing": {"type": "null"},
                    "tags": {"type": "array", "items": {"enum": ["a", "(,'"]}, "maxItems": 2},
                    "kind": {"type": "string", "enum": ["x", "y z"]},
                },
                "required": ["seats", "tags"],
            },
        ),
        NOW,
    ]
    parser = parser_of(name)
    form = Structured.structural_tag({"format": parser.calls(tools, many=True)})
    schemas = {tool.name: tool.parameters for tool in tools}
    (eos,) = tokenizer.eos_token_ids
    choose = random.Random(5)
    seen = set()
    for _ in range(12):
        matcher = compiler.matcher(form)
        token_ids: list[int] = []
        while True:
            allowed = matcher.allowed().nonzero()[0].tolist()
            # What may end does, most of the time: calls would follow for ever.
            token_id = eos if eos in allowed and choose.random() < 0.8 else choose.choice(allowed)
            if token_id == eos:
                break
            token_ids.append(token_id)
            if matcher.append(token_id):
                break
        text = tokenizer.decode(token_ids, skip_special_tokens=False)
        rest, calls = read(parser.reader(tools), [text])
        assert rest == "", text
        assert calls, text
        for called, arguments in calls:
            jsonschema.validate(json.loads(arguments), dict(schemas[called]))
            seen.add(called)
    assert seen == set(schemas)


def test_one_call_alone_where_no_more_are_wanted(takes):
    for name, call, _ in WRITES:
        parser = parser_of(name)
        separator = "; " if name == "llama3_json" else "\n"
        for make in (parser.calls, parser.free):
            assert takes(make(TOOLS, many=False), call)
            assert not takes(make(TOOLS, many=False), call + separator + call)


def test_a_named_function_s_arguments_are_all_there_is(takes):
    form = PlainNamedParser().calls([WEATHER], many=False)
    assert takes(form, '{"city": "Ulm"}')
    assert not takes(form, "{}")
    assert read(PlainNamedParser().reader([WEATHER]), ['{"ci', "", 'ty": "Ulm"}']) == (
        "",
        [("get_weather", '{"city": "Ulm"}')],
    )


@pytest.mark.parametrize("name", ["qwen3_coder", "pythonic"])
def test_a_schema_that_is_no_list_of_arguments(takes, name):
    either = Tool.of(
        "either", {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}}
    )
    if name == "pythonic":
        form = parser_of(name).calls([either], many=False)
        assert takes(form, '[either(**{"a": 1})]')
        assert not takes(form, "[either(**{})]")
    else:
        with pytest.raises(ValueError, match="'either'"):
            parser_of(name).calls([either], many=False)


@pytest.mark.parametrize(
    ("required", "yes", "no"),
    [
        ([], ["f()", "f(a=1)", "f(b=1)", "f(a=1, c=1)", "f(a=1, b=1, c=1)"], ["f(b=1, a=1)", "f(a=1,)"]),
        (["b"], ["f(b=1)", "f(a=1, b=1)", "f(b=1, c=1)"], ["f()", "f(a=1)", "f(a=1, c=1)"]),
        (["a", "c"], ["f(a=1, c=1)", "f(a=1, b=1, c=1)"], ["f(a=1)", "f(a=1, b=1)", "f(c=1)"]),
    ],
)
def test_python_s_arguments_are_separated(takes, required, yes, no):
    number = {"type": "integer"}
    tool = Tool.of("f", {"properties": {"a": number, "b": number, "c": number}, "required": required})
    form = parser_of("pythonic").calls([tool], many=False)
    assert [call for call in yes if not takes(form, f"[{call}]")] == []
    assert [call for call in no if takes(form, f"[{call}]")] == []


def test_ids_are_what_the_templates_take():
    assert re.fullmatch(r"[a-zA-Z0-9]{9}", parser_of("mistral").call_id())
    assert re.fullmatch(r"chatcmpl-tool-[0-9a-f]{16}", parser_of("hermes").call_id())
    assert len({parser_of("mistral").call_id() for _ in range(50)}) == 50
