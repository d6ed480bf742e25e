"""Read answers step by step: what the readers of all formats of calls have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from .parser import Event, ToolReader
from .text import Spacing

# Looks at the buffer, appends what it finds, and returns whether another step can follow at once.
Step = Callable[[list[Event]], bool]


class SteppedReader(ToolReader):
    """Keep what has come and is not understood yet in a buffer, which one step after the other looks at.

    Args:
        first: the step at the beginning of an answer.
    """

    def __init__(self, first: Step) -> None:
        self._spacing = Spacing()
        self._buffer = ""
        self._step = first

    def feed(self, text: str) -> list[Event]:
        """See `ToolReader.feed`."""
        self._buffer += text
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """See `ToolReader.finish`."""
        events: list[Event] = []
        self._end(events)
        if blanks := self._spacing.finish():
            events.append(blanks)
        return events

    @abstractmethod
    def _end(self, events: list[Event]) -> None:
        """Append what the buffer still holds when the answer ends."""

    def _show(self, text: str, events: list[Event]) -> None:
        if shown := self._spacing.text(text):
            events.append(shown)

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _go(self, step: Step) -> bool:
        self._step = step
        return True
