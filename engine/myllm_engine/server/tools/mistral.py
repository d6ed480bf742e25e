"""Calls as Mistral's models write them, behind `[TOOL_CALLS]`.

Up to version 10 of their tokenizer a list follows, `[{"name": …, "arguments": {…}}, …]`; from version 11 on
each call has a marker of its own, `[TOOL_CALLS]name[ARGS]{…}`, with `[CALL_ID]` and an id before `[ARGS]` in
some. Format: mistral-common, `mistral_common/tokens/tokenizers/instruct.py`.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Sequence

from .json_calls import JsonCalls, Layout
from .json_scan import ValueScanner
from .parser import Arguments, Call, Event, Format, Tool, ToolReader, json_of, separated, tag, triggered
from .stepped import SteppedReader
from .text import could_begin, unfinished

_CALLS, _ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
# mistral-common takes no other ids (`validator.py`, `_validate_tool_call_id`).
_ID_LENGTH = 9
_ID_CHARACTERS = string.ascii_letters + string.digits
# More than any function's name, with the id of a call.
_LONGEST_NAME = 256


class MistralParser(JsonCalls):
    """Read both of Mistral's formats, and write the one that the tokenizer knows."""

    markers = (_CALLS, _ARGS, _CALL_ID)
    layout = Layout(begin=f"{_CALLS}[", end="]", array=True, markers=(_CALLS,))

    def __init__(self, special_tokens: Collection[str] = ()) -> None:
        super().__init__(special_tokens)
        self._is_new = _ARGS in special_tokens

    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """See `ToolParser.calls`."""
        if self._is_new:
            return separated(_named(tools), "", many=many)
        return super().calls(tools, many=many)

    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """See `ToolParser.free`."""
        if self._is_new:
            return triggered([_CALLS], _named(tools), many=many)
        return super().free(tools, many=many, reserved=reserved)

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See `ToolParser.reader`."""
        names = frozenset(tool.name for tool in tools)
        return _Reader(super().reader(tools), names)

    def call_id(self) -> str:
        """Return a new call's id: nine letters and digits."""
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))


def _named(tools: Sequence[Tool]) -> list[Format]:
    return [tag(f"{_CALLS}{tool.name}{_ARGS}", json_of(tool.parameters), "") for tool in tools]


class _Reader(SteppedReader):
    """Read the newer format, and leave an answer that turns out to be in the older one to its reader."""

    def __init__(self, older: ToolReader, names: Collection[str]) -> None:
        super().__init__(self._text)
        self._older = older
        self._names = names
        self._value = ValueScanner()

    def finish(self) -> list[Event]:
        """See `ToolReader.finish`."""
        return self._older.finish() if self._step == self._old else super().finish()

    def _end(self, events: list[Event]) -> None:
        self._show(self._buffer, events)

    def _text(self, events: list[Event]) -> bool:
        """Show text up to the next call."""
        place = self._buffer.find(_CALLS)
        if place < 0:
            self._show(self._take(len(self._buffer) - unfinished(self._buffer, (_CALLS,))), events)
            return False
        self._show(self._take(place), events)
        return self._go(self._name)

    def _name(self, events: list[Event]) -> bool:
        """Expect a name behind the marker, which is still in the buffer."""
        text = self._buffer[len(_CALLS) :]
        bare = text.lstrip()
        if not bare or any(could_begin(bare, marker) for marker in (_ARGS, _CALL_ID)):
            return False
        if bare[0] in "[{":
            self._buffer = self._spacing.finish() + self._buffer
            return self._go(self._old)
        ends = [place for marker in (_ARGS, "{") if (place := text.find(marker)) >= 0]
        if not ends:
            if len(text) < _LONGEST_NAME:
                return False
            return self._no_call(events)
        head = text[: min(ends)]
        name = head.partition(_CALL_ID)[0].strip()
        if name not in self._names:
            return self._no_call(events)
        self._take(len(_CALLS) + len(head))
        if self._buffer.startswith(_ARGS):
            self._take(len(_ARGS))
        self._spacing.call()
        events.append(Call(name))
        self._value = ValueScanner()
        return self._go(self._arguments)

    def _arguments(self, events: list[Event]) -> bool:
        """Follow the arguments."""
        if self._value.untouched:
            self._take(len(self._buffer) - len(self._buffer.lstrip()))
        piece = self._take(self._value.feed(self._buffer))
        if piece:
            events.append(Arguments(piece))
        if self._value.done:
            self._step = self._text
        return self._value.done

    def _old(self, events: list[Event]) -> bool:
        """Leave everything to the other reader."""
        events += self._older.feed(self._take(len(self._buffer)))
        return False

    def _no_call(self, events: list[Event]) -> bool:
        self._show(self._take(len(_CALLS)), events)
        return self._go(self._text)
