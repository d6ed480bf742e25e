"""Turn a growing list of tokens into a growing text, and find stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Make the text of one completion, token by token.

    A character that takes several tokens comes out whole with its last token, and never if the completion
    ends before. While the end of the text could be the beginning of a stop string, it is held back. Whatever
    the steps, the pieces join to the same text.

    Args:
        tokenizer: the backend tokenizer.
        skip_special_tokens: leave special tokens out.
        stop: stop strings.
        include_stop: keep the stop string at the end of the text.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""
        self.stop_string: str | None = None

    def append(self, token_id: int, *, check_stop: bool = True) -> str:
        """Add a token and return the new text; sets `stop_string` when one is complete.

        With `check_stop=False` no stop string is looked for, and text handed out now cannot become part of
        one.
        """
        new = self._stream.step(self._tokenizer, token_id)
        if new:
            self._held += new
        if not check_stop or not self._stop:
            return self._release(len(self._held))
        found = [(place, stop) for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if found:
            # The first in the text; of two at one place, the longer: what it adds is not text that was asked
            # for.
            place, self.stop_string = min(found, key=lambda item: (item[0], -len(item[1])))
            text = self._release(place + (len(self.stop_string) if self._include_stop else 0))
            self._held = ""
            return text
        return self._release(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """Return the text that was held back for a stop string which did not come."""
        return self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _possible_stop(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(len(stop) for stop in self._stop) - 1)
        for length in range(longest, 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0
