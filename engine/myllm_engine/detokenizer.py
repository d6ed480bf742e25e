"""Turn a growing list of tokens into a growing text, and find stop strings in it."""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

# Tokens of the prompt that the first tokens are decoded with: a few characters, whatever their encoding.
_PROMPT_TOKENS = 8


class Detokenizer:
    """Make the text of one completion, token by token.

    The pieces join to `decode(prompt + completion)` without `decode(prompt)`: the space that some tokenizers
    drop at the beginning of a text is dropped at the beginning of the prompt only. A character that takes
    several tokens comes out whole with its last token, and never if the completion ends before; one that the
    prompt began counts as the completion's. While the end of the text could be the beginning of a stop
    string, it is held back. Whatever the steps, the pieces join to the same text.

    As a decoder may look at a token's neighbours, tokens are decoded in a window that starts with those of
    the previous piece (as in TGI and vLLM).

    Args:
        tokenizer: of the model.
        prompt_token_ids: what the completion continues.
        skip_special_tokens: leave special tokens out.
        stop: stop strings.
        include_stop: keep the stop string at the end of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt_token_ids: Sequence[int] = (),
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        include_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""
        self.stop_string: str | None = None
        # The window: tokens whose text is out, then those that end inside a character. `_ahead` characters
        # of the latter's text are out as well.
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []
        self._ahead = 0
        self._prime(prompt_token_ids)

    def copy(self) -> Detokenizer:
        """Return a detokenizer at the same place, which goes on by itself."""
        other = copy.copy(self)
        other._context, other._pending = list(self._context), list(self._pending)
        return other

    def append(self, token_id: int, *, check_stop: bool = True) -> str:
        """Add a token and return the new text; sets `stop_string` when one is complete.

        With `check_stop=False` no stop string is looked for, and text handed out now cannot become part of
        one.
        """
        self._held += self._decode(token_id)
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

    def _prime(self, prompt_token_ids: Sequence[int]) -> None:
        """Start the window with the last tokens of the prompt."""
        context: list[int] = []
        for token_id in reversed(prompt_token_ids):
            if len(context) == _PROMPT_TOKENS:
                break
            if self._has_text(token_id):
                context.insert(0, token_id)
        # The window starts where a character does, and ends there, too.
        while len(context) > 1 and self._continues_character(context[0]):
            del context[0]
        place = len(context) - 1
        while place > 0 and self._continues_character(context[place]):
            place -= 1
        self._context = context
        if context:
            text, complete = self._read(context[place:])
            if not complete:
                self._context, self._pending, self._ahead = context[:place], context[place:], len(text)
        self._context_text = self._text(self._context)

    def _decode(self, token_id: int) -> str:
        """Return what a token adds to the text, as far as its characters are complete."""
        if not self._has_text(token_id):
            return ""
        self._pending.append(token_id)
        window = self._text(self._context + self._pending)
        if window.endswith("\ufffd"):  # broken bytes, a character's first bytes, or U+FFFD itself
            text, complete = self._read(self._pending)
            if not complete:
                new, self._ahead = text[self._ahead :], len(text)
                return new
        if window.startswith(self._context_text):
            text = window[len(self._context_text) :]
        else:
            # Byte fallback decodes neighbouring bytes as one: broken ones would change text that is out.
            text = self._text(self._pending)
        new = text[self._ahead :]
        if text:
            self._context, self._context_text = self._pending, self._text(self._pending)
        else:  # such as the space that begins a text
            self._context += self._pending
        self._pending, self._ahead = [], 0
        return new

    def _has_text(self, token_id: int) -> bool:
        """Tell whether decoding does not pass over a token, which must not be all that the window holds."""
        if self._skip_special_tokens and self._tokenizer.is_special(token_id):
            return False
        return bool(self._tokenizer.token_bytes(token_id))

    def _continues_character(self, token_id: int) -> bool:
        return self._tokenizer.token_bytes(token_id)[0] & 0xC0 == 0x80

    def _read(self, token_ids: list[int]) -> tuple[str, bool]:
        """Return the complete characters of tokens' bytes, and whether there is nothing after them."""
        data = b"".join(self._tokenizer.token_bytes(token_id) for token_id in token_ids)
        text, consumed = codecs.utf_8_decode(data, "replace", False)
        return text, consumed == len(data)

    def _text(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _possible_stop(self) -> int:
        """Return the length of the longest end of the held text that begins a stop string."""
        longest = 0
        for stop in self._stop:
            place = self._held.find(stop[0], max(0, len(self._held) - len(stop) + 1))
            while place >= 0 and len(self._held) - place > longest:
                if stop.startswith(self._held[place:]):
                    longest = len(self._held) - place
                    break
                place = self._held.find(stop[0], place + 1)
        return longest
