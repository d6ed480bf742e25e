"""Give each token its share of the text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from ..tokenizer import Tokenizer


class TokenTexts:
    """Split a sequence's text by token: the pieces join to the text of all tokens.

    A character whose bytes are spread over several tokens belongs to the last of them; the tokens before it
    have the empty string. Special tokens are written out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, token_ids: Iterable[int]) -> list[str]:
        """Return the pieces of the next tokens."""
        return [self._piece(token_id) for token_id in token_ids]

    def _piece(self, token_id: int) -> str:
        if self._tokenizer.is_special(token_id):
            return self._tokenizer.token_text(token_id)
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))
