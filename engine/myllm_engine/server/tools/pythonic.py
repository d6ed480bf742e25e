"""Calls as Llama 3.2 and Llama 4 write them: the answer is a Python list, `[f(a=1), g(b="x")]`.

Format: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_2/ (zero-shot function calling).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence

from .arguments import Argument, json_text, split
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
    text_not_beginning_with,
)
from .stepped import SteppedReader

_HEAD = re.compile(r"[\w.-]*\(?")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class PythonicParser(ToolParser):
    """Read and write calls in Python. With a bracket at its beginning an answer is calls, else it is text.

    Values are written as JSON, but for Python's `True`, `False` and `None`, and are read in either form.
    Arguments that cannot be written one by one are written as `**{...}`.
    """

    anchored = True

    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """See `ToolParser.calls`."""
        tags = [tag(f"{tool.name}(", _arguments(tool), ")") for tool in tools]
        return sequence(const("["), separated(tags, ", ", many=many), const("]"))

    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """See `ToolParser.free`."""
        return either(self.calls(tools, many=many), text_not_beginning_with("[" + reserved))

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See `ToolParser.reader`."""
        return _Reader(frozenset(tool.name for tool in tools))


def _arguments(tool: Tool) -> Format:
    arguments = split(tool)
    if arguments is None or not all(argument.name.isidentifier() for argument in arguments):
        return sequence(const("**"), json_of(tool.parameters))
    if not arguments:
        return const("")
    first = next((place for place, argument in enumerate(arguments) if argument.required), None)
    if first is not None:
        before = [optional(sequence(_argument(each), const(", "))) for each in arguments[:first]]
        return sequence(*before, _argument(arguments[first]), *_behind(arguments[first + 1 :]))
    return optional(
        either(
            *(
                sequence(_argument(argument), *_behind(arguments[place + 1 :]))
                for place, argument in enumerate(arguments)
            )
        )
    )


def _behind(arguments: Sequence[Argument]) -> list[Format]:
    """Return the formats of arguments that follow another one."""
    formats = [(each.required, sequence(const(", "), _argument(each))) for each in arguments]
    return [whole if required else optional(whole) for required, whole in formats]


def _argument(argument: Argument) -> Format:
    match argument.schema.get("type"):
        case "boolean" if "enum" not in argument.schema and "const" not in argument.schema:
            value = either(const("True"), const("False"))
        case "null":
            value = const("None")
        case _:
            value = json_of(argument.schema)
    return tag(f"{argument.name}=", value, "")


class _Reader(SteppedReader):
    def __init__(self, names: Collection[str]) -> None:
        super().__init__(self._start)
        self._names = names
        self._raw = ""  # what has been read of a call whose function is not known yet
        self._num_arguments = 0
        self._scanner = _ArgumentScanner()

    def _end(self, events: list[Event]) -> None:
        if self._step in (self._start, self._head):
            self._show(self._raw + self._buffer, events)

    def _start(self, events: list[Event]) -> bool:
        """Look whether the answer begins with a list."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if text[0] != "[":
            return self._go(self._text)
        self._raw = self._take(len(self._buffer) - len(text) + 1)
        return self._go(self._head)

    def _text(self, events: list[Event]) -> bool:
        """Show text in which no call can come any more."""
        self._show(self._take(len(self._buffer)), events)
        return False

    def _head(self, events: list[Event]) -> bool:
        """Expect `name(`."""
        text = self._buffer.lstrip()
        match = _HEAD.match(text)
        head = match[0] if match else ""
        if head == text and not head.endswith("("):
            return False
        name = head.removesuffix("(")
        if name == head or name not in self._names:
            return self._no_call(events)
        self._take(len(self._buffer) - len(text) + len(head))
        self._raw, self._num_arguments = "", 0
        self._spacing.call()
        events.append(Call(name))
        return self._go(self._argument)

    def _argument(self, events: list[Event]) -> bool:
        """Expect an argument, or the end of the call."""
        place = self._scanner.end(self._buffer)
        if place is None:
            return False
        self._scanner = _ArgumentScanner()
        argument, end = self._take(place).strip(), self._take(1)
        if argument:
            self._show_argument(argument, events)
        if end == ",":
            return True
        if end != ")":
            # Not Python: what follows is no argument.
            return self._go(self._text)
        if self._num_arguments >= 0:
            events.append(Arguments("}" if self._num_arguments else "{}"))
        return self._go(self._after)

    def _show_argument(self, argument: str, events: list[Event]) -> None:
        if argument.startswith("**") and not self._num_arguments:
            # All of them at once: nothing else comes, and nothing is to be closed.
            self._num_arguments = -1
            events.append(Arguments(json_text(argument[2:]) or "{}"))
        elif self._num_arguments >= 0:
            name, _, value = argument.partition("=")
            text = json_text(value)
            if text is None:
                text = json.dumps(value.strip(), ensure_ascii=False)
            lead = ", " if self._num_arguments else "{"
            events.append(Arguments(f"{lead}{json.dumps(name.strip(), ensure_ascii=False)}: {text}"))
            self._num_arguments += 1

    def _after(self, events: list[Event]) -> bool:
        """Expect another call, or the end of the list."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if text[0] in ",]":
            self._take(len(self._buffer) - len(text) + 1)
        return self._go(self._head if text[0] == "," else self._text)

    def _no_call(self, events: list[Event]) -> bool:
        raw, self._raw = self._raw, ""
        self._show(raw, events)
        return self._go(self._text)


class _ArgumentScanner:
    """Find what ends an argument, looking at each character once."""

    def __init__(self) -> None:
        self._seen = 0
        self._open: list[str] = []  # what closes the brackets that are open
        self._quote = ""
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Return the place of the comma or bracket that ends the argument; None while it goes on.

        Args:
            text: the argument from its first character on; grows from call to call.
        """
        for place in range(self._seen, len(text)):
            character = text[place]
            if self._quote:
                self._in_quotes(character)
            elif character in "\"'":
                self._quote = character
            elif character in _CLOSING:
                self._open.append(_CLOSING[character])
            elif self._open:
                if character == self._open[-1]:
                    self._open.pop()
            elif character in ",)]}":
                return place
        self._seen = len(text)
        return None

    def _in_quotes(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == self._quote:
            self._quote = ""
