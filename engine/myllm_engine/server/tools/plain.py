"""Calls for models without a format of their own: JSON, as the constraint makes any model write it."""

from __future__ import annotations

from collections.abc import Sequence

from .json_calls import JsonCalls, Layout
from .parser import Arguments, Call, Event, Format, Tool, ToolParser, ToolReader, json_of


class PlainParser(JsonCalls):
    """Write and read a list of calls, as vLLM has it: `[{"name": …, "parameters": {…}}, …]`."""

    layout = Layout(begin="[", end="]", array=True, arguments="parameters")


class PlainNamedParser(ToolParser):
    """Write and read the arguments of the one function that must be called, and nothing else."""

    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """See `ToolParser.calls`."""
        [tool] = tools
        return json_of(tool.parameters)

    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """Raise ValueError: bare arguments cannot be told from text."""
        raise ValueError("a call without a marker cannot stand in text")

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See `ToolParser.reader`."""
        [tool] = tools
        return _Reader(tool.name)


class _Reader(ToolReader):
    def __init__(self, name: str) -> None:
        self._call: list[Event] = [Call(name)]

    def feed(self, text: str) -> list[Event]:
        """See `ToolReader.feed`."""
        if not text:
            return []
        call, self._call = self._call, []
        return [*call, Arguments(text)]

    def finish(self) -> list[Event]:
        """See `ToolReader.finish`."""
        return []
