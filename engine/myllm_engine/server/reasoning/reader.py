"""Take an answer's thoughts and its text apart while it comes."""

from __future__ import annotations

from enum import Enum, auto

from ..tools.text import could_begin, find_first, unfinished
from .parser import Opening, ReasoningParser


class _State(Enum):
    BEGINNING = auto()
    THINKING = auto()
    # Behind the thoughts, where blanks are left out.
    THOUGHT = auto()
    ANSWERING = auto()


class ReasoningReader:
    """Read one answer. However it is cut, the pieces add up to the same.

    Blanks around thoughts and between them and the answer are left out.

    Args:
        parser: knows the format.
        opening: where the answer begins.

    Attributes:
        thought: how many characters have been read up to the end of the thoughts, markers included; None
            while that is not known.
    """

    def __init__(self, parser: ReasoningParser, opening: Opening) -> None:
        self._parser = parser
        # A start behind the prompt's own is left out.
        self._state = _State.ANSWERING if opening == "closed" else _State.BEGINNING
        self._implicit = parser.implicit or opening == "open"
        self._buffer = ""
        self._read = 0  # characters, those of the buffer not counted
        self._shown = False  # a part of the thoughts
        self.thought: int | None = 0 if opening == "closed" else None

    def feed(self, text: str) -> tuple[str, str]:
        """Return the new thoughts and the new text of the answer."""
        self._buffer += text
        reasoning = ""
        if self._state is _State.BEGINNING:
            self._begin()
        if self._state is _State.THINKING:
            reasoning = self._think()
        return reasoning, self._answer()

    def finish(self) -> tuple[str, str]:
        """Return what was held back when the answer ends."""
        rest, self._buffer = self._buffer, ""
        self._read += len(rest)
        if self._state is _State.THINKING or (self._state is _State.BEGINNING and self._implicit):
            self.thought = self._read
            return (rest.rstrip() if self._shown else rest.strip()), ""
        if self._state is _State.BEGINNING:
            self.thought = 0
            return "", rest
        return "", ""

    def _begin(self) -> None:
        """Look for the start of thoughts."""
        text = self._buffer.lstrip()
        start = next((start for start in self._parser.starts if text.startswith(start)), None)
        if start is not None:
            self._take(len(self._buffer) - len(text) + len(start))
            self._state = _State.THINKING
        elif text and not any(could_begin(text, start) for start in self._parser.starts):
            if self._implicit:
                self._state = _State.THINKING
            else:
                self._state, self.thought = _State.ANSWERING, 0

    def _think(self) -> str:
        found = find_first(self._buffer, self._parser.ends)
        if found is None:
            # Blanks before an end are no part of the thoughts.
            sure = self._buffer[: len(self._buffer) - unfinished(self._buffer, self._parser.ends)]
            return self._thoughts(len(sure.rstrip()))
        place, end = found
        reasoning = self._thoughts(place).rstrip()
        self._take(len(end))
        self._state, self.thought = _State.THOUGHT, self._read
        return reasoning

    def _thoughts(self, length: int) -> str:
        text = self._take(length)
        if not self._shown:
            text = text.lstrip()
            self._shown = bool(text)
        return text

    def _answer(self) -> str:
        if self._state is _State.THOUGHT:
            self._take(len(self._buffer) - len(self._buffer.lstrip()))
            if self._buffer:
                self._state = _State.ANSWERING
        return self._take(len(self._buffer)) if self._state is _State.ANSWERING else ""

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        self._read += length
        return taken
