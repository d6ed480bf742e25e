"""Read and write the formats whose calls are JSON objects between fixed texts."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .json_scan import CallScanner
from .parser import (
    Call,
    Event,
    Format,
    Tool,
    ToolParser,
    ToolReader,
    const,
    either,
    json_of,
    separated,
    sequence,
    tag,
    text_not_beginning_with,
    triggered,
)
from .stepped import SteppedReader
from .text import could_begin, find_first, unfinished


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Say how calls are laid out.

    Attributes:
        begin: what stands before the calls; its first part is one of `markers`. Empty: they begin the answer.
        end: what stands after them; blanks at its ends are not waited for.
        separator: what stands between two calls.
        array: the calls are a list, which begins and ends inside of `begin` and `end`. Otherwise `begin` and
            `end` belong to each single call, unless `begin` is empty.
        arguments: the key of the arguments.
        markers: what begins calls, in every variant that is read.
    """

    begin: str = ""
    end: str = ""
    separator: str = ", "
    array: bool = False
    arguments: str = "arguments"
    markers: tuple[str, ...] = ()

    @property
    def anywhere(self) -> bool:
        """Tell whether calls may stand behind text; without a marker they would not show there."""
        return bool(self.begin.strip("[ \n"))

    @property
    def opening(self) -> str:
        """Return the character that begins calls, behind `begin`."""
        return "[" if self.array else "{"


class JsonCalls(ToolParser):
    """Be the base of parsers that differ in their layout only.

    Attributes:
        layout: see `Layout`; set by the class, or by its constructor where it depends on the tokenizer.
    """

    layout: Layout

    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """See `ToolParser.calls`."""
        layout = self.layout
        if layout.array:
            return sequence(const(layout.begin), self._listed(tools, many=many), const(layout.end))
        return self._listed(tools, many=many)

    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """See `ToolParser.free`."""
        layout = self.layout
        if not layout.anywhere:
            return either(self.calls(tools, many=many), text_not_beginning_with(layout.opening + reserved))
        trigger = max((m for m in layout.markers if layout.begin.startswith(m)), key=len)
        if layout.array:
            listed = tag(layout.begin, self._listed(tools, many=many), layout.end)
            return triggered([trigger], [listed], many=False)
        return triggered([trigger], self._tags(tools), many=many)

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See `ToolParser.reader`."""
        return JsonCallsReader(self.layout, frozenset(tool.name for tool in tools))

    def _listed(self, tools: Sequence[Tool], *, many: bool) -> Format:
        return separated(self._tags(tools), self.layout.separator, many=many)

    def _tags(self, tools: Sequence[Tool]) -> list[Format]:
        layout = self.layout
        begin, end = ("", "") if layout.array else (layout.begin, layout.end)
        return [
            tag(
                f'{begin}{{"name": {json.dumps(tool.name)}, "{layout.arguments}": ',
                json_of(tool.parameters),
                "}" + end,
            )
            for tool in tools
        ]


class JsonCallsReader(SteppedReader):
    """Read calls of one layout, and of the variants that models make of it.

    Args:
        layout: see `Layout`.
        names: of the functions that can be called.
    """

    def __init__(self, layout: Layout, names: Collection[str]) -> None:
        super().__init__(self._text if layout.anywhere else self._start)
        self._closing = layout.end.strip().removeprefix("]").lstrip()
        self._markers = layout.markers
        self._anywhere = layout.anywhere
        self._openings = "[{" if layout.anywhere else layout.opening
        self._names = names
        # What has been read of a call whose function is not known yet: it may turn out to be text.
        self._raw = ""
        self._scanner = CallScanner(names)
        self._in_array = False

    def _end(self, events: list[Event]) -> None:
        # Behind a call there may be blanks, or a part of what ends it.
        if self._step not in (self._after, self._next):
            self._show(self._raw + self._buffer, events)

    def _start(self, events: list[Event]) -> bool:
        """Look whether the answer begins with a call."""
        text = self._buffer.lstrip()
        if not text or any(could_begin(text, marker) for marker in self._markers):
            return False
        marker = next((marker for marker in self._markers if text.startswith(marker)), "")
        if not marker and text[0] not in self._openings:
            return self._go(self._plain)
        self._raw = self._take(len(self._buffer) - len(text) + len(marker))
        return self._go(self._opened)

    def _text(self, events: list[Event]) -> bool:
        """Show text up to the next call."""
        found = find_first(self._buffer, self._markers)
        if found is None:
            self._show(self._take(len(self._buffer) - unfinished(self._buffer, self._markers)), events)
            return False
        place, marker = found
        self._show(self._take(place), events)
        self._raw = self._take(len(marker))
        return self._go(self._opened)

    def _plain(self, events: list[Event]) -> bool:
        """Show text in which no call can come any more."""
        self._show(self._take(len(self._buffer)), events)
        return False

    def _opened(self, events: list[Event]) -> bool:
        """Expect a call or a list of calls."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if text[0] == "[" and text[0] in self._openings and not self._in_array:
            self._in_array = True
            self._raw += self._take(len(self._buffer) - len(text) + 1)
            return True
        return self._begin(text, events)

    def _next(self, events: list[Event]) -> bool:
        """Expect another call."""
        text = self._buffer.lstrip()
        return bool(text) and self._begin(text, events)

    def _begin(self, text: str, events: list[Event]) -> bool:
        if text[0] != "{":
            return self._broken(events)
        self._scanner = CallScanner(self._names)
        return self._go(self._call)

    def _call(self, events: list[Event]) -> bool:
        """Follow a call."""
        new, length = self._scanner.feed(self._buffer)
        piece = self._take(length)
        if any(isinstance(event, Call) for event in new):
            self._spacing.call()
        events += new
        self._raw = "" if self._scanner.called else self._raw + piece
        if self._scanner.broken:
            return self._broken(events)
        return self._scanner.done and self._go(self._after)

    def _after(self, events: list[Event]) -> bool:
        """Expect another call, or the end of the calls."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if self._in_array:
            if text[0] == "]":
                self._in_array = False
                self._take(len(self._buffer) - len(text) + 1)
                return True
            more = ","
        else:
            more = "" if self._anywhere else ",;"
        if text[0] in more:
            self._take(len(self._buffer) - len(text) + 1)
            return self._go(self._next)
        if could_begin(text, self._closing):
            return False
        if self._closing and text.startswith(self._closing):
            self._take(len(self._buffer) - len(text) + len(self._closing))
        self._in_array = False
        return self._go(self._text if self._anywhere else self._plain)

    def _broken(self, events: list[Event]) -> bool:
        """Show as text what looked like a call."""
        self._show(self._raw, events)
        self._raw, self._in_array = "", False
        return self._go(self._text if self._anywhere else self._plain)
