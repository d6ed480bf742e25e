"""Calls as Qwen3-Coder writes them: tags for the function and for each argument.

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

A string is written as it is, anything else as JSON.
Format: chat template of Qwen/Qwen3-Coder-30B-A3B-Instruct.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .arguments import Argument, json_text, split
from .json_scan import ValueScanner
from .parser import (
    Arguments,
    Call,
    Event,
    Format,
    Tool,
    ToolParser,
    ToolReader,
    const,
    either,
    json_of,
    optional,
    separated,
    sequence,
    tag,
    triggered,
)
from .stepped import SteppedReader
from .text import could_begin, find_first, unfinished

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_ANNOTATIONS = frozenset({"default", "description", "examples", "title"})


class Qwen3CoderParser(ToolParser):
    """Read and write Qwen3-Coder's calls. Arguments come in the order of the schema."""

    markers = (_CALL, _CALL_END)

    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """See `ToolParser.calls`."""
        return separated([_call(tool) for tool in tools], "\n", many=many)

    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """See `ToolParser.free`."""
        # The models forget the outer tag at times.
        tags = [_call(tool, begin) for tool in tools for begin in (f"{_CALL}\n", "")]
        return triggered([_CALL, _FUNCTION], tags, many=many)

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See `ToolParser.reader`."""
        return _Reader(tools)


def _call(tool: Tool, begin: str = f"{_CALL}\n") -> Format:
    arguments = split(tool)
    if arguments is None:
        raise ValueError(
            f"the `parameters` of the function {tool.name!r} are not written as `properties` alone, "
            "which this model's format of calls needs"
        )
    parameters = [_parameter(argument) for argument in arguments]
    body = sequence(*parameters) if parameters else const("")
    return tag(f"{begin}{_FUNCTION}{tool.name}>\n", body, f"{_FUNCTION_END}\n{_CALL_END}")


def _parameter(argument: Argument) -> Format:
    begin, end = f"{_PARAMETER}{argument.name}>\n", f"\n{_PARAMETER_END}\n"
    if not _is_raw(argument.schema):
        whole = tag(begin, json_of(argument.schema), end)
    elif "enum" in argument.schema:
        whole = tag(begin, either(*map(const, argument.schema["enum"])), end)
    else:
        # The first end tag ends a value, as it does for who reads it.
        whole = sequence(tag(begin, {"type": "any_text"}, _PARAMETER_END), const("\n"))
    return whole if argument.required else optional(whole)


def _is_raw(schema: Mapping[str, Any]) -> bool:
    """Tell whether a value is written as it is; a string of which the schema says more is written as JSON."""
    if schema.get("type") != "string":
        return False
    said = schema.keys() - _ANNOTATIONS - {"type", "$defs", "definitions"}
    values = schema.get("enum", [])
    plain = all(isinstance(v, str) and v and v == v.strip() and _PARAMETER_END not in v for v in values)
    return not said or (said == {"enum"} and bool(values) and plain)


def _is_open(text: str) -> bool:
    """Tell whether a text is the beginning of a JSON string, list or object."""
    text = text.lstrip()
    scanner = ValueScanner()
    scanner.feed(text)
    return text[:1] in ('"', "[", "{") and not scanner.done


class _Reader(SteppedReader):
    """Read calls with or without the outer tag, and with or without line breaks."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(self._text)
        self._raw_arguments = {
            tool.name: {argument.name: _is_raw(argument.schema) for argument in split(tool) or ()}
            for tool in tools
        }
        self._raw = ""
        self._function = ""
        self._num_arguments = 0
        self._is_text = False  # of the current value

    def _end(self, events: list[Event]) -> None:
        if self._step == self._value and self._is_text:
            self._show_value(self._buffer, events)
        elif self._step in (self._text, self._function_tag):
            self._show(self._raw + self._buffer, events)

    def _text(self, events: list[Event]) -> bool:
        """Show text up to the next call."""
        markers = (_CALL, _FUNCTION)
        found = find_first(self._buffer, markers)
        if found is None:
            self._show(self._take(len(self._buffer) - unfinished(self._buffer, markers)), events)
            return False
        place, marker = found
        self._show(self._take(place), events)
        if marker == _CALL:
            self._raw = self._take(len(_CALL))
        return self._go(self._function_tag)

    def _function_tag(self, events: list[Event]) -> bool:
        """Expect `<function=name>`."""
        text = self._buffer.lstrip()
        if not text or could_begin(text, _FUNCTION):
            return False
        end = text.find(">")
        if text.startswith(_FUNCTION) and end < 0:
            return False
        name = text[len(_FUNCTION) : end].strip()
        if not text.startswith(_FUNCTION) or name not in self._raw_arguments:
            # What cannot begin a call is shown, and looked through again behind its first character.
            raw = self._raw or self._take(1)
            self._raw = ""
            self._show(raw, events)
            return self._go(self._text)
        self._take(len(self._buffer) - len(text) + end + 1)
        self._raw = ""
        self._function, self._num_arguments = name, 0
        self._spacing.call()
        events.append(Call(name))
        return self._go(self._inside)

    def _inside(self, events: list[Event]) -> bool:
        """Expect an argument, or the end of the function."""
        text = self._buffer.lstrip()
        if not text or could_begin(text, _PARAMETER) or could_begin(text, _FUNCTION_END):
            return False
        if text.startswith(_PARAMETER):
            end = text.find(">")
            if end < 0:
                return False
            self._begin_value(text[len(_PARAMETER) : end].strip(), events)
            self._take(len(self._buffer) - len(text) + end + 1)
            return self._go(self._line_break)
        if text.startswith(_FUNCTION_END):
            self._take(len(self._buffer) - len(text) + len(_FUNCTION_END))
        events.append(Arguments("}" if self._num_arguments else "{}"))
        return self._go(self._after)

    def _begin_value(self, name: str, events: list[Event]) -> None:
        self._is_text = self._raw_arguments[self._function].get(name, True)
        lead = ", " if self._num_arguments else "{"
        quote = '"' if self._is_text else ""
        events.append(Arguments(f"{lead}{json.dumps(name, ensure_ascii=False)}: {quote}"))
        self._num_arguments += 1

    def _line_break(self, events: list[Event]) -> bool:
        """Leave out the line break before a value."""
        if not self._buffer:
            return False
        if self._buffer[0] == "\n":
            self._take(1)
        return self._go(self._value)

    def _value(self, events: list[Event]) -> bool:
        """Follow a value; a string is shown as it comes."""
        place = self._end_of_value()
        if place < 0:
            if self._is_text:
                held = unfinished(self._buffer, (_PARAMETER_END, f"\n{_PARAMETER_END}"))
                self._show_value(self._take(len(self._buffer) - held), events)
            return False
        value = self._take(place).removesuffix("\n")
        self._take(len(_PARAMETER_END))
        if self._is_text:
            self._show_value(value, events)
            events.append(Arguments('"'))
        else:
            text = json_text(value)
            events.append(Arguments(json.dumps(value, ensure_ascii=False) if text is None else text))
        return self._go(self._inside)

    def _end_of_value(self) -> int:
        """Return the place of the tag that ends a value, or -1; inside of JSON it ends nothing."""
        place = self._buffer.find(_PARAMETER_END)
        while place >= 0 and not self._is_text and _is_open(self._buffer[:place]):
            place = self._buffer.find(_PARAMETER_END, place + 1)
        return place

    def _after(self, events: list[Event]) -> bool:
        """Leave out the outer tag's end."""
        text = self._buffer.lstrip()
        if not text or could_begin(text, _CALL_END):
            return False
        if text.startswith(_CALL_END):
            self._take(len(self._buffer) - len(text) + len(_CALL_END))
        return self._go(self._text)

    def _show_value(self, text: str, events: list[Event]) -> None:
        if text:
            events.append(Arguments(json.dumps(text, ensure_ascii=False)[1:-1]))
