"""Follow JSON as it comes, without waiting for its end."""

from __future__ import annotations

import json
from collections.abc import Collection

from .parser import Arguments, Call, Event

_BLANKS = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")


class ValueScanner:
    """Find the end of one JSON value, fed from its first character on. What it holds is not judged.

    Attributes:
        done: the value has ended.
    """

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    @property
    def untouched(self) -> bool:
        """Tell whether the value has not begun."""
        return not self._begun

    def feed(self, text: str, start: int = 0) -> int:
        """Return where the value ends in the text, or the text's length when it goes on."""
        for place in range(start, len(text)):
            character = text[place]
            if self._in_string:
                self._string(character)
            elif character == '"':
                self._in_string = self._begun = True
            elif character in "{[":
                self._depth += 1
                self._begun = True
            elif character in "}]" and self._depth:
                self._depth -= 1
                self.done = not self._depth
            elif not self._depth and self._begun and character in ",}]" + _BLANKS:
                # A number or a word ends where something else begins.
                self.done = True
                return place
            else:
                self._begun = True
            if self.done:
                return place + 1
        return len(text)

    def _string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False
            self.done = not self._depth


class CallScanner:
    """Read one `{"name": "...", "arguments": {...}}` as it comes; the latter may be called `parameters`.

    Arguments are handed on as they are written, once the name is known.

    Args:
        names: of the functions that can be called.

    Attributes:
        done: the object has ended, and was a call.
        broken: it is no call.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.done = False
        self.broken = False
        self._names = names
        self._name: str | None = None
        self._held: str | None = None  # arguments that came before the name
        self._shown = False  # the arguments are out
        self._step = "open"
        self._key = ""
        self._value = ValueScanner()
        self._raw = ""

    @property
    def called(self) -> bool:
        """Tell whether the function is known."""
        return self._name is not None

    def feed(self, text: str) -> tuple[list[Event], int]:
        """Return what the text shows, and how much of it belongs to the call."""
        events: list[Event] = []
        place = 0
        while place < len(text) and not (self.done or self.broken):
            if self._step in ("key", "value"):
                end = self._value.feed(text, place)
                self._take(text[place:end], events)
                place = end
            else:
                self._between(text[place], events)
                # A value begins with the character that shows it.
                place += self._step not in ("key", "value")
        return events, place

    def _between(self, character: str, events: list[Event]) -> None:
        """Follow a character that belongs neither to a key nor to a value."""
        if character in _BLANKS:
            return
        match self._step, character:
            case "open", "{":
                self._step = "first key"
            case (("first key" | "next key"), '"'):
                self._begin("key")
            case (("first key" | "comma"), "}"):
                self._end(events)
            case "comma", ",":
                self._step = "next key"
            case "colon", ":":
                self._step = "any value"
            case "any value", _:
                self._begin("value")
            case _:
                self.broken = True

    def _begin(self, step: str) -> None:
        self._step, self._value, self._raw = step, ValueScanner(), ""

    def _take(self, piece: str, events: list[Event]) -> None:
        """Add a piece of a key or a value."""
        self._raw += piece
        is_arguments = self._key in _ARGUMENTS and self._step == "value" and not self._shown
        # An object is handed on as it comes; anything else in place of one must be read first.
        streams = is_arguments and self._raw.startswith("{") and self._name is not None
        if streams:
            events.append(Arguments(piece))
        if not self._value.done:
            return
        self._shown = self._shown or streams
        if self._step == "key":
            self._key, self._step = _string(self._raw) or "", "colon"
            return
        self._step = "comma"
        if is_arguments and not streams:
            self._held = _object_text(self._raw)
            self._show(events)
        elif self._key == "name":
            name = _string(self._raw)
            if name not in self._names or self._name is not None:
                self.broken = True
                return
            self._name = name
            events.append(Call(name))
            self._show(events)

    def _show(self, events: list[Event]) -> None:
        """Hand on arguments that were held, once the name is there."""
        if self._name is not None and self._held is not None:
            events.append(Arguments(self._held))
            self._held, self._shown = None, True

    def _end(self, events: list[Event]) -> None:
        if self._name is None:
            self.broken = True
            return
        if not self._shown:
            events.append(Arguments("{}"))
        self.done = True


def _string(raw: str) -> str | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _object_text(raw: str) -> str:
    """Return an object's text; some models write it inside of a string, or null for an empty one."""
    if raw == "null":
        return "{}"
    inner = _string(raw)
    return raw if inner is None else inner
