"""Translate grammars in EBNF, as llama.cpp (GBNF), XGrammar and vLLM write it, to llguidance's Lark.

The notation: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. A rule may be spread over
lines, as in XGrammar's: it goes on until the next `name ::=`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
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

    Where a grammar is recursive, its rules without recursion become lexemes, which match as much as they
    can: `word word` with `word ::= [a-z]+` then needs something between the two (in llguidance's own
    converter too).

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
    lexemes = _lexemes(rules, tails=False)
    if "root" not in lexemes:
        lexemes = _lexemes(rules, tails=True)
    names = {}
    for number, name in enumerate(rules):
        plain = f"{number}_" + re.sub(r"\W", "_", name)
        names[name] = f"T{plain}".upper() if name in lexemes else f"r{plain}".lower()

    def text(parts: Sequence[_Part]) -> str:
        return "".join(part.lark if part.name is None else names[part.name] for part in parts)

    lines = [f"start: {names['root']}"]
    for name, rule in rules.items():
        tails = [] if name in lexemes else _tails(rule, lexemes)
        if not any(tail for _, tail in tails):
            lines.append(f"{names[name]}: {text(rule.parts)}")
            continue
        heads = []
        for number, (head, tail) in enumerate(tails):
            lines.append(f"{names[name].upper()}_{number}: {text(head)}")
            heads.append(f"{names[name].upper()}_{number} {text(tail)}")
        lines.append(f"{names[name]}: {' | '.join(heads)}")
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
                if empty:
                    add(' ""')
                add(f" {text}")
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
        if empty:
            add(' ""')
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


def _lexemes(rules: Mapping[str, _Rule], *, tails: bool) -> dict[str, bool]:
    """Return which rules can be lexemes, and whether those match the empty text.

    Args:
        rules: by name.
        tails: leave out rules that end with what may be empty, blanks as a rule. As a part of the lexeme, it
            would take what the rule is to be followed by.
    """
    sizes: dict[str, int] = {}
    lexemes: dict[str, bool] = {}
    users: dict[str, list[str]] = {name: [] for name in rules}
    missing = {name: len({item for item, _ in rule.references}) for name, rule in rules.items()}
    for name, rule in rules.items():
        for used in {item for item, _ in rule.references}:
            users[used].append(name)
    ready = [name for name, count in missing.items() if not count]
    while ready:  # from the leaves up: a rule in a cycle never gets ready
        name = ready.pop()
        rule = rules[name]
        size = len(rule.parts) + sum(sizes[used] for used, _ in rule.references)
        if size > _LARGEST_LEXEME or (tails and any(tail for _, tail in _tails(rule, lexemes))):
            continue
        sizes[name], lexemes[name] = size, _matches_empty(rule.parts, lexemes)
        for user in users[name]:
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return lexemes


def _tails(rule: _Rule, lexemes: Mapping[str, bool]) -> list[tuple[list[_Part], list[_Part]]]:
    """Return each alternative of a rule of lexemes as its head, and what may be empty at its end.

    A rule that is not made of lexemes alone has none, nor has one that is a tail as a whole.
    """
    if any(name not in lexemes for name, _ in rule.references):
        return []
    alternatives: list[list[_Part]] = [[]]
    depth = 0
    for part in rule.parts:
        depth += (part.lark.strip() == "(") - (part.lark.strip() == ")")
        if depth == 0 and part.lark.strip() == "|":
            alternatives.append([])
        else:
            alternatives[-1].append(part)
    result = []
    for parts in alternatives:
        end = len(parts)
        while end and (parts[end - 1].lark.isspace() or lexemes.get(parts[end - 1].name or "", False)):
            end -= 1
        if not any(part.name or part.lark.strip() for part in parts[:end]):
            return []
        result.append((parts[:end], [part for part in parts[end:] if part.name]))
    return result


def _matches_empty(parts: Sequence[_Part], lexemes: Mapping[str, bool]) -> bool:
    """Tell whether a lexeme matches the empty text: what takes a character is an x here."""
    signs = ("|", "(", ")", "*", "+", "?", "")
    pattern = ""
    for part in parts:
        lark = part.lark.strip()
        if part.name is not None:
            pattern += "(?:x?)" if lexemes[part.name] else "x"
        elif lark in signs or lark.startswith("{"):
            pattern += lark
        else:
            pattern += "(?:)" if lark == '""' else "x"
    return re.fullmatch(pattern, "") is not None
