"""Translate grammars in EBNF, as llama.cpp (GBNF), XGrammar and vLLM write it, to llguidance's Lark.

The notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. A rule may be spread over
lines, as in XGrammar's: it goes on until the next `name ::=`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

# A rule that does not refer to itself becomes part of one lexeme, a regular expression, which is much faster
# to follow than rules of single characters; but not where it would be expanded to more parts than these.
_LARGEST_LEXEME = 2000

_TOKEN = re.compile(
    r"""
    (?P<blank>\s+ | \#[^\n]*)
    | (?P<name>[A-Za-z0-9_][A-Za-z0-9_-]*)
    | (?P<define>::=)
    | (?P<text>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
    | (?P<set>\[(?:[^\]\\\n]|\\.)*\])
    | (?P<repeat>[*+?] | \{\s*\d+\s*(?:,\s*\d*\s*)?\})
    | (?P<sign>[|().])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


def is_ebnf(grammar: str) -> bool:
    """Tell whether a grammar is written with `::=`; else it is Lark's."""
    return re.search(r"^\s*[A-Za-z0-9_-]+\s*::=", grammar, re.MULTILINE) is not None


def ebnf_to_lark(grammar: str) -> str:
    """Return the Lark grammar of the same language, whose first rule is `start`.

    Where a grammar is recursive, its rules without recursion match as much as they can, as in llguidance's
    own converter: `word word` with `word ::= [a-z]+` needs something between the two.

    Raises:
        ValueError: it is malformed; the message names the line.
    """
    rules = _Parser(grammar).rules()
    if "root" not in rules:
        raise ValueError("it has no rule `root`, where the text begins")
    for rule in rules.values():
        for name, line in rule.references:
            if name not in rules:
                raise ValueError(f"line {line}: there is no rule `{name}`")
    sizes = _sizes(rules)
    names = {
        name: ("T" if name in sizes else "r") + f"{number}_" + re.sub(r"\W", "_", name)
        for number, name in enumerate(rules)
    }
    names = {name: new.upper() if name in sizes else new.lower() for name, new in names.items()}
    lines = [f"start: {names['root']}"]
    for name, rule in rules.items():
        lines.append(f"{names[name]}: {''.join(names[p.name] if p.name else p.lark for p in rule.parts)}")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class _Part:
    """Hold a piece of a rule's right side: Lark text, or the name of a rule."""

    lark: str = ""
    name: str | None = None


@dataclass(slots=True)
class _Rule:
    parts: list[_Part] = field(default_factory=list)
    references: list[tuple[str, int]] = field(default_factory=list)


class _Parser:
    def __init__(self, grammar: str) -> None:
        self._grammar = grammar
        self._tokens = list(self._tokenize(grammar))

    def _tokenize(self, grammar: str) -> Iterator[tuple[str, str, int]]:
        place = line = 0
        while place < len(grammar):
            match = _TOKEN.match(grammar, place)
            if match is None:
                raise ValueError(f"line {line + 1}: {grammar[place:].split(chr(10))[0][:30]!r} is not EBNF")
            if match.lastgroup != "blank":
                yield str(match.lastgroup), match[0], line + 1
            line += match[0].count("\n")
            place = match.end()

    def rules(self) -> dict[str, _Rule]:
        """Return the rules by name, in order."""
        rules: dict[str, _Rule] = {}
        starts = [i - 1 for i, token in enumerate(self._tokens) if token[0] == "define"]
        if not starts or starts[0] != 0:
            raise ValueError("line 1: a rule begins with `name ::=`")
        for start, end in zip(starts, [*starts[1:], len(self._tokens)], strict=True):
            kind, name, line = self._tokens[start]
            if kind != "name":
                raise ValueError(f"line {line}: a rule's name is expected before `::=`, not {name!r}")
            if name in rules:
                raise ValueError(f"line {line}: the rule `{name}` is there already")
            rules[name] = self._rule(start + 2, end, line)
        return rules

    def _rule(self, start: int, end: int, line: int) -> _Rule:
        rule = _Rule()
        opened: list[int] = []
        empty = True  # nothing yet since the last `|` or `(`: Lark writes an empty alternative as ""
        repeatable = False

        def add(lark: str = "", name: str | None = None) -> None:
            rule.parts.append(_Part(lark, name))

        for kind, text, line in self._tokens[start:end]:
            if kind == "repeat":
                if not repeatable:
                    raise ValueError(f"line {line}: {text!r} follows nothing that it could repeat")
                add(re.sub(r"\s", "", text))
                repeatable = False
                continue
            if text in ("|", ")") and kind == "sign":
                if text == ")" and not opened:
                    raise ValueError(f"line {line}: `)` closes nothing")
                add(f' "" {text}' if empty else f" {text}")
                if text == ")":
                    opened.pop()
                empty, repeatable = text == "|", text == ")"
                continue
            add(" ")
            if kind == "sign" and text == "(":
                opened.append(line)
                add("(")
                empty, repeatable = True, False
                continue
            if kind == "name":
                rule.references.append((text, line))
                add(name=text)
            elif kind == "text":
                add(json.dumps(_unescape(text[1:-1], line), ensure_ascii=False))
            elif kind == "set":
                add(_regex_set(text, line))
            elif kind == "sign":
                add("/(?s:.)/")
            empty, repeatable = False, True
        if opened:
            raise ValueError(f"line {opened[-1]}: `(` is never closed")
        add(' ""' if empty else "")
        return rule


def _unescape(text: str, line: int) -> str:
    def one(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is None:
            letter = match[4]
            if letter.isalnum() and letter not in _LETTERS:
                raise ValueError(f"line {line}: `\\{letter}` is no escape sequence of EBNF")
            return _LETTERS.get(letter, letter)
        if int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000:
            raise ValueError(f"line {line}: {match[0]!r} is no character")
        return chr(int(code, 16))

    return _ESCAPE.sub(one, text)


def _regex_set(text: str, line: int) -> str:
    """Return `[...]` as a regular expression between slashes."""
    negated = text.startswith("[^")
    inside = text[2 if negated else 1 : -1]
    if not inside:
        raise ValueError(f"line {line}: `{text}` holds no character")
    result = ""
    for piece in re.findall(r"\\[xuU][0-9a-fA-F]+|\\.|.", inside, re.DOTALL):
        # A bare `-` makes a range, an escaped one is itself.
        result += "-" if piece == "-" else _set_character(piece, line)
    return f"/[{'^' if negated else ''}{result}]/"


def _set_character(piece: str, line: int) -> str:
    return "".join(f"\\x{{{ord(character):X}}}" for character in _unescape(piece, line))


def _sizes(rules: dict[str, _Rule]) -> dict[str, int]:
    """Return into how many parts each rule that can be a lexeme expands."""
    sizes: dict[str, int] = {}
    users: dict[str, list[str]] = {name: [] for name in rules}
    missing = {name: len({item for item, _ in rule.references}) for name, rule in rules.items()}
    for name, rule in rules.items():
        for used in {item for item, _ in rule.references}:
            users[used].append(name)
    ready = [name for name, count in missing.items() if not count]
    while ready:  # from the leaves up: a rule in a cycle never gets ready
        name = ready.pop()
        size = len(rules[name].parts) + sum(sizes[used] for used, _ in rules[name].references)
        if size > _LARGEST_LEXEME:
            continue
        sizes[name] = size
        for user in users[name]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return sizes
