"""Help readers with text that is cut anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def find_first(text: str, markers: Iterable[str]) -> tuple[int, str] | None:
    """Return the place of the first marker in a text, and which it is; of two at one place the longer."""
    found = [(place, marker) for marker in markers if (place := text.find(marker)) >= 0]
    return min(found, key=lambda item: (item[0], -len(item[1])), default=None)


def unfinished(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest end of a text that begins a marker without being one."""
    longest = max(map(len, markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        end = text[len(text) - length :]
        if any(len(marker) > length and marker.startswith(end) for marker in markers):
            return length
    return 0


def could_begin(text: str, marker: str) -> bool:
    """Tell whether a text begins a marker without being all of it."""
    return len(text) < len(marker) and marker.startswith(text)


class Spacing:
    """Leave out the blanks around calls, and none of a text that has no calls."""

    def __init__(self) -> None:
        self._blanks = ""
        self._after_call = False
        self._called = False

    def text(self, text: str) -> str:
        """Return what can be shown of the text that follows."""
        text = self._blanks + text
        if self._after_call:
            text = text.lstrip()
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        self._after_call = self._after_call and not shown
        return shown

    def call(self) -> None:
        """Tell that a call follows."""
        self._blanks, self._after_call, self._called = "", True, True

    def finish(self) -> str:
        """Return the blanks that end the text."""
        return "" if self._called else self._blanks
