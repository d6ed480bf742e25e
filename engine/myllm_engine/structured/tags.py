"""Translate structural tags, free text with constrained parts in it, to llguidance's grammars.

Two formats are read: vLLM's and OpenAI-style `{"type": "structural_tag", "structures": [...], "triggers":
[...]}`, and XGrammar's `{"type": "structural_tag", "format": {...}}`
(https://xgrammar.mlc.ai/docs/structural_tag/structural_tag.html).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from .ebnf import ebnf_to_lark, is_ebnf

_ANY = "/(?s:.)*/"
# More than any context has.
_MOST_TOKENS = 2**24
# What each format may say besides its `type`.
_KEYS: dict[str, tuple[str, ...]] = {
    "any_text": (),
    "any_tokens": ("exclude_tokens", "max_tokens"),
    "const_string": ("value",),
    "grammar": ("grammar",),
    # The last two are our own.
    "json_schema": ("json_schema", "whitespace_pattern", "separators"),
    "optional": ("content",),
    "or": ("elements",),
    "regex": ("pattern",),
    "sequence": ("elements",),
    "tag": ("begin", "content", "end"),
    "tags_with_separator": ("tags", "separator", "at_least_one", "stop_after_first"),
    "triggered_tags": ("triggers", "tags", "at_least_one", "stop_after_first"),
}
# What XGrammar's formats may say besides, with the values that ask for nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "any_order": (False,),
    "excludes": ([],),
    "max_chars": (None,),
    "max_tokens": (None,),
    "max_whitespace_cnt": (None,),
    "style": ("json",),
}


def tags_to_grammar(document: Mapping[str, Any], special_tokens: Mapping[str, int]) -> str:
    """Return the llguidance grammar of a structural tag.

    Args:
        document: in either format.
        special_tokens: ids of the tokenizer's special tokens by their text; in tags they stand for
            themselves.

    Raises:
        ValueError: the document is malformed; the message names the place.
    """
    builder = _Builder(special_tokens)
    if "format" in document:
        body = builder.last(_mapping(document, "format", "structural_tag"), "format")
    elif "structures" in document:
        tags = []
        for index, item in enumerate(_list(document, "structures", "structural_tag")):
            schema = _get(item, "schema", f"structures[{index}]")
            known = {name: value for name, value in item.items() if name != "schema"}
            tags.append({**known, "content": {"type": "json_schema", "json_schema": schema}})
        body = builder.triggered({"triggers": document.get("triggers"), "tags": tags}, "structural_tag")
    else:
        raise ValueError("it needs `format`, or `structures` and `triggers`")
    return builder.grammar(body)


class _Builder:
    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        self._special = special_tokens
        self._split = re.compile(
            "|".join(map(re.escape, sorted(special_tokens, key=len, reverse=True))) or "(?!)"
        )
        self._rules: list[str] = []
        self._grammars: list[dict[str, Any]] = []

    def grammar(self, body: str) -> str:
        lark = "\n".join([f"start: {body}", f"ANY: {_ANY}", *self._rules])
        return json.dumps({"grammars": [{"name": "tags", "lark_grammar": lark}, *self._grammars]})

    def last(self, item: Mapping[str, Any], place: str) -> str:
        """Return a format at the end of the text, where free text may stand."""
        kind = item.get("type")
        _check_keys(item, place)
        if kind == "any_text":
            return "ANY"
        if kind == "triggered_tags":
            return self.triggered(item, place)
        if kind == "sequence":
            elements = self._elements(item, place)
            whole = [
                self._closed(element, f"{place}.elements[{i}]") for i, element in enumerate(elements[:-1])
            ]
            return " ".join([*whole, self.last(elements[-1], f"{place}.elements[{len(elements) - 1}]")])
        if kind == "or":
            elements = self._elements(item, place)
            return self._or(self.last(each, f"{place}.elements[{i}]") for i, each in enumerate(elements))
        return self._closed(item, place)

    def _closed(self, item: Mapping[str, Any], place: str) -> str:
        """Return a format whose end shows by itself, so that something may follow it."""
        kind = item.get("type")
        _check_keys(item, place)
        if kind == "triggered_tags" and item.get("stop_after_first"):
            return self.triggered(item, place)
        if kind in ("any_text", "triggered_tags"):
            raise ValueError(
                f"`{place}`: {kind} ends with free text, so it may stand only at the end, or (any_text) "
                "between the `begin` and the `end` of a tag"
            )
        makers: dict[Any, Callable[[Mapping[str, Any], str], str]] = {
            "any_tokens": self._any_tokens,
            "const_string": lambda item, place: self._text(_string(item, "value", place, empty=True)),
            "json_schema": self._json_schema,
            "regex": self._regex,
            "grammar": self._grammar,
            "optional": self._optional,
            "sequence": self._sequence,
            "or": self._closed_or,
            "tag": self._tag,
            "tags_with_separator": self._separated,
        }
        return makers[kind](item, place)

    def triggered(self, item: Mapping[str, Any], place: str) -> str:
        """Return free text in which each trigger begins one of its tags."""
        triggers = _list(item, "triggers", place)
        tags = _list(item, "tags", place)
        if not all(isinstance(trigger, str) and trigger for trigger in triggers):
            raise ValueError(f"`{place}`: `triggers` must hold non-empty strings")
        by_trigger: dict[str, list[str]] = {}
        whole = []
        for index, tag in enumerate(tags):
            where = f"{place}.tags[{index}]"
            _check_keys(tag, where, kind="tag")
            begin = _string(tag, "begin", where)
            trigger = max((t for t in triggers if begin.startswith(t)), key=len, default=None)
            if trigger is None:
                raise ValueError(f"`{where}`: {begin!r} begins with none of the triggers {triggers!r}")
            inside = self._name(self._inside(tag, where))
            by_trigger.setdefault(trigger, []).append(f"{self._text(begin[len(trigger) :])} {inside}")
            whole.append(f"{self._text(begin)} {inside}")
        if unused := [trigger for trigger in triggers if trigger not in by_trigger]:
            raise ValueError(f"`{place}`: no tag begins with the trigger {unused[0]!r}")
        found = self._or(f"{self._trigger(trigger)} {self._or(rest)}" for trigger, rest in by_trigger.items())
        first = f"{self._or(whole)} " if item.get("at_least_one") else ""
        if item.get("stop_after_first"):
            return first or self._or([found, "ANY"])
        return f"{first}{found}* ANY"

    def _trigger(self, text: str) -> str:
        """Return free text up to a trigger and with it."""
        if text in self._special:
            return f"ANY {self._text(text)}"
        if self._split.search(text):
            raise ValueError(f"{text!r} mixes a special token with other text: use the token alone")
        # Lazy: it ends where the trigger first occurs.
        return self._name(f"ANY {json.dumps(text, ensure_ascii=False)}", "[lazy]")

    def _any_tokens(self, item: Mapping[str, Any], place: str) -> str:
        """Return so many tokens as there may be; special ones are no text, and must be asked for by name."""
        excluded = item.get("exclude_tokens") or []
        if not isinstance(excluded, list):
            raise ValueError(f"`{place}`: `exclude_tokens` must be a list; got {str(excluded)[:50]!r}")
        ids = {self._token(token, place) for token in excluded} | set(self._special.values())
        one = f"<[^{','.join(map(str, sorted(ids)))}]>" if ids else "<[*]>"
        limit = item.get("max_tokens")
        if limit is None:
            return f"{one}*"
        if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < _MOST_TOKENS:
            raise ValueError(
                f"`{place}`: `max_tokens` must be a number up to {_MOST_TOKENS - 1}; got {limit!r}"
            )
        return f"{one}{{0,{limit}}}" if limit else '""'

    def _token(self, token: Any, place: str) -> int:
        """Return the id of a token, given so or by the text of a special one."""
        token_id = self._special.get(token) if isinstance(token, str) else token
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise ValueError(
                f"`{place}`: {str(token)[:50]!r} is neither the id of a token nor the text of a special one"
            )
        return token_id

    def _tag(self, item: Mapping[str, Any], place: str) -> str:
        _check_keys(item, place, kind="tag")
        return f"{self._text(_string(item, 'begin', place, empty=True))} {self._inside(item, place)}"

    def _inside(self, item: Mapping[str, Any], place: str) -> str:
        """Return a tag's content and end."""
        content, end = _mapping(item, "content", place), _string(item, "end", place, empty=True)
        if content.get("type") == "any_text" and end:
            _check_keys(content, f"{place}.content")
            return self._trigger(end)
        return f"{self._closed(content, f'{place}.content')} {self._text(end)}"

    def _separated(self, item: Mapping[str, Any], place: str) -> str:
        tags = _list(item, "tags", place)
        one = self._name(self._or(self._tag(tag, f"{place}.tags[{i}]") for i, tag in enumerate(tags)))
        separator = self._text(_string(item, "separator", place, empty=True))
        more = "" if item.get("stop_after_first") else f" ({separator} {one})*"
        return f"({one}{more})" + ("" if item.get("at_least_one") else "?")

    def _optional(self, item: Mapping[str, Any], place: str) -> str:
        return f"({self._closed(_mapping(item, 'content', place), f'{place}.content')})?"

    def _sequence(self, item: Mapping[str, Any], place: str) -> str:
        elements = self._elements(item, place)
        return " ".join(self._closed(each, f"{place}.elements[{i}]") for i, each in enumerate(elements))

    def _closed_or(self, item: Mapping[str, Any], place: str) -> str:
        elements = self._elements(item, place)
        return self._or(self._closed(each, f"{place}.elements[{i}]") for i, each in enumerate(elements))

    def _json_schema(self, item: Mapping[str, Any], place: str) -> str:
        schema = _get(item, "json_schema", place)
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise ValueError(f"`{place}`: `json_schema` must be an object; got {str(schema)[:50]}")
        # Two keys of our own: `whitespace_pattern` as in `Structured`, and what stands between items and
        # behind keys.
        options: dict[str, Any] = {"whitespace_flexible": False}
        if "whitespace_pattern" in item:
            pattern = _string(item, "whitespace_pattern", place)
            options = {"whitespace_flexible": True, "whitespace_pattern": pattern}
        if "separators" in item:
            between, behind_key = _pair(item, "separators", place)
            options |= {"item_separator": between, "key_separator": behind_key}
        return "%json " + json.dumps({**schema, "x-guidance": options})

    def _regex(self, item: Mapping[str, Any], place: str) -> str:
        from llguidance import LLMatcher

        (grammar,) = json.loads(LLMatcher.grammar_from_regex(_string(item, "pattern", place)))["grammars"]
        return self._side(grammar["lark_grammar"])

    def _grammar(self, item: Mapping[str, Any], place: str) -> str:
        text = _string(item, "grammar", place)
        return self._side(ebnf_to_lark(text) if is_ebnf(text) else text)

    def _side(self, lark: str) -> str:
        name = f"part{len(self._grammars)}"
        self._grammars.append({"name": name, "lark_grammar": lark})
        return f"@{name}"

    def _name(self, body: str, options: str = "") -> str:
        name = f"rule{len(self._rules)}"
        self._rules.append(f"{name}{options}: {body}")
        return name

    def _text(self, text: str) -> str:
        """Return a fixed text, in which special tokens stand for themselves."""
        parts, place = [], 0
        for match in self._split.finditer(text):
            parts += [
                json.dumps(text[place : match.start()], ensure_ascii=False),
                f"<[{self._special[match[0]]}]>",
            ]
            place = match.end()
        parts.append(json.dumps(text[place:], ensure_ascii=False))
        return " ".join(part for part in parts if part != '""') or '""'

    @staticmethod
    def _or(items: Any) -> str:
        return f"({' | '.join(items)})"

    @staticmethod
    def _elements(item: Mapping[str, Any], place: str) -> list[Any]:
        elements = _list(item, "elements", place)
        if not all(isinstance(element, Mapping) for element in elements):
            raise ValueError(f"`{place}`: `elements` must hold objects")
        return elements


def _check_keys(item: Any, place: str, kind: str | None = None) -> None:
    """Refuse a format that is not known, or says what would not be heeded."""
    if not isinstance(item, Mapping):
        raise ValueError(f"`{place}` must be an object; got {str(item)[:50]!r}")
    kind = kind or item.get("type")
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(f"`{place}`: the type {str(kind)[:50]!r} is not one of {', '.join(_KEYS)}")
    for name, value in item.items():
        if name not in ("type", *_KEYS[kind]) and value not in _NEUTRAL.get(name, ()):
            known = ", ".join(("type", *_KEYS[kind]))
            raise ValueError(f"`{place}`: {kind} has no {name[:50]!r} here; it has {known}")


def _get(item: Any, name: str, place: str) -> Any:
    if not isinstance(item, Mapping) or name not in item:
        raise ValueError(f"`{place}`: `{name}` is missing")
    return item[name]


def _mapping(item: Any, name: str, place: str) -> Mapping[str, Any]:
    value = _get(item, name, place)
    if not isinstance(value, Mapping):
        raise ValueError(f"`{place}`: `{name}` must be an object; got {str(value)[:50]!r}")
    return value


def _list(item: Any, name: str, place: str) -> list[Any]:
    value = _get(item, name, place)
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{place}`: `{name}` must be a list of one or more; got {str(value)[:50]!r}")
    return value


def _pair(item: Any, name: str, place: str) -> tuple[str, str]:
    value = _list(item, name, place)
    if len(value) != 2 or not all(isinstance(text, str) for text in value):
        raise ValueError(f"`{place}`: `{name}` must hold two strings; got {str(value)[:50]}")
    return value[0], value[1]


def _string(item: Any, name: str, place: str, *, empty: bool = False) -> str:
    value = _get(item, name, place)
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(
            f"`{place}`: `{name}` must be a string{'' if empty else ', not empty'}; got {value!r}"
        )
    return value
