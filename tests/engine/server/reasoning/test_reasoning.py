"""Thoughts and answers are told apart, and constraints hold behind the thoughts."""

from __future__ import annotations

import importlib.metadata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_engine.constraint import Structured
from myllm_engine.server import reasoning
from myllm_engine.server import tools as tool_formats
from myllm_engine.server.reasoning import ReasoningReader, registry
from myllm_engine.server.settings import ServerSettings
from myllm_engine.structured import GrammarCompiler

THOUGHT = "Paris </thin king is"
READS = [
    # Parser, how the prompt leaves it, text, thoughts, answer, length of the thoughts with their markers.
    ("deepseek_r1", "unknown", "<think>\nHm.\n</think>\n\nParis.", "Hm.", "Paris.", 20),
    ("deepseek_r1", "unknown", "Hm.</think>Paris.", "Hm.", "Paris.", 11),
    ("deepseek_r1", "unknown", "Hm, Paris. ", "Hm, Paris.", "", 11),
    ("deepseek_r1", "closed", "Paris.", "", "Paris.", 0),
    ("qwen3", "unknown", f"<think>\n{THOUGHT}\n\n</think>\n\nParis.\n", THOUGHT, "Paris.\n", 38),
    ("qwen3", "unknown", " Paris.", "", " Paris.", 0),
    ("qwen3", "unknown", " <thi", "", " <thi", 0),
    ("qwen3", "open", "\nHm.\n</think>\n\nParis </think>.", "Hm.", "Paris </think>.", 13),
    ("qwen3", "open", "<think>Hm.</think>Paris.", "Hm.", "Paris.", 18),
    ("qwen3", "unknown", "<think>\n\n</think>\n\n", "", "", 17),
    ("qwen3", "closed", "<think>Paris", "", "<think>Paris", 0),
    ("granite", "unknown", "Here's my thought process: Hm. Here is my response: Here.", "Hm.", "Here.", 51),
    ("granite", "unknown", "Here is Paris.", "", "Here is Paris.", 0),
    ("mistral", "unknown", "[THINK]Hm.[/THINK]Paris.", "Hm.", "Paris.", 18),
    ("seed_oss", "unknown", "<seed:think>Hm.</seed:think>Paris.", "Hm.", "Paris.", 28),
]


def read(name, opening, pieces):
    reader = ReasoningReader(reasoning.find(name), opening)
    parts = [*(reader.feed(piece) for piece in pieces), reader.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts), reader.thought


@pytest.mark.parametrize(("name", "opening", "text", "thoughts", "answer", "length"), READS)
def test_thoughts_are_found_however_the_text_is_cut(name, opening, text, thoughts, answer, length):
    expected = (thoughts, answer, length)
    assert read(name, opening, [text]) == expected
    assert read(name, opening, text) == expected
    for cut in range(len(text) + 1):
        assert read(name, opening, [text[:cut], text[cut:]]) == expected


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_cut_of_any_text_adds_up(data):
    name, opening, text, *_ = data.draw(st.sampled_from(READS))
    text = data.draw(st.sampled_from([text, text * 2, text[: len(text) // 2], f"\n{text}"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(name, opening, pieces) == read(name, opening, [text])


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("<|im_start|>assistant\n", "unknown"),
        ("<|im_start|>assistant\n<think>\n", "open"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "closed"),
        ("Explain </think> to me.<|im_end|>\n<|im_start|>assistant\n", "unknown"),
    ],
)
def test_the_prompt_shows_where_the_answer_begins(prompt, opening):
    assert reasoning.find("qwen3").opening(prompt) == opening


def test_thoughts_come_while_they_are_written():
    reader = ReasoningReader(reasoning.find("qwen3"), "unknown")
    assert [reader.feed(piece) for piece in ("<think>", "\nSo", " it", " is", "</th")] == [
        ("", ""),
        ("So", ""),
        (" it", ""),
        (" is", ""),
        ("", ""),
    ]


@pytest.fixture(scope="module")
def takes_format(tokenizer):
    """Return a function that says whether a format takes a text, and takes it as complete."""
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    (eos,) = tokenizer.eos_token_ids

    def run(form: dict, text: str) -> bool:
        matcher = compiler.matcher(Structured.structural_tag({"format": form}))
        for token_id in tokenizer.encode(text):
            if matcher.raw.try_consume_tokens([token_id]) == 0:
                return False
        return bool(matcher.allowed()[eos])

    yield run
    compiler.close()


@pytest.fixture
def takes(tokenizer, takes_format):
    """Return a function that says whether thoughts before an answer of digits are taken as complete."""

    def run(name: str, opening: str, text: str) -> bool:
        digits = {"type": "regex", "pattern": "[0-9]+"}
        special = tokenizer.special_tokens
        form = reasoning.find(name).before(digits, opening, special_tokens=special, is_free=False)
        return takes_format(form, text)

    return run


@pytest.mark.parametrize(
    ("name", "opening", "yes", "no"),
    [
        ("qwen3", "closed", ["12"], ["<think></think>12", "x"]),
        ("qwen3", "open", ["so 1 </think>12", "</think>12"], ["12", "so 1 </think>", "so 1 </think>x"]),
        (
            "qwen3",
            "unknown",
            ["12", "<think>so 1 </think>12"],
            ["<think>12", "so </think>12", "<think></think>x"],
        ),
        ("deepseek_r1", "unknown", ["so </think>12", "<think>so </think>12"], ["12", "so </think>x"]),
        (
            "granite",
            "unknown",
            [
                "12",
                "Here is my thought process: a Here's my response:12",
                "Here's my thought process: Here is my response:1",
            ],
            ["Here is my thought process: 12", "Here is my thought process: a Here's my response:x"],
        ),
    ],
)
def test_what_is_behind_the_thoughts_is_constrained(takes, name, opening, yes, no):
    assert [text for text in yes if not takes(name, opening, text)] == []
    assert [text for text in no if takes(name, opening, text)] == []


@pytest.mark.parametrize("parser", ["llama3_json", "pythonic"])
def test_calls_behind_thoughts_keep_to_the_schema_where_text_could_be_both(tokenizer, takes_format, parser):
    """Text, thoughts and calls are told apart by their first characters, in the grammar as in the readers."""
    tools = tool_formats.find(parser)()
    named = [tool_formats.Tool.of("f", {"properties": {"a": {"type": "integer"}}, "required": ["a"]})]
    thoughts = reasoning.find("qwen3")
    special = tokenizer.special_tokens
    free = tools.free(named, many=True, reserved=thoughts.reserved("unknown", special))
    form = thoughts.before(free, "unknown", special_tokens=special, is_free=not tools.anchored)
    call, wrong = {
        "llama3_json": ('{"name": "f", "parameters": {"a": 1}}', '{"name": "f", "parameters": {"a": "x"}}'),
        "pythonic": ("[f(a=1)]", "[f(a=x)]"),
    }[parser]
    for text in (
        "Good day.",
        f"Good {call}",
        call,
        f"<think>so {wrong}</think>{call}",
        "<think>so</think>Good.",
    ):
        assert takes_format(form, text), text
    for text in (wrong, f"<think>so</think>{wrong}", f" {wrong}", "<tag>", "<think>so"):
        assert not takes_format(form, text), text


def test_an_unknown_parser_lists_the_known_ones(monkeypatch):
    with pytest.raises(ValueError, match="'qwen' is not known; known are deepseek_r1, .*qwen3"):
        ServerSettings(reasoning_parser="qwen")
    entries = [
        importlib.metadata.EntryPoint("none", "json:loads", "g"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    with pytest.raises(ValueError, match="'none' must be a `ReasoningParser`"):
        reasoning.find("none")
