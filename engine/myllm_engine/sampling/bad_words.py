"""Find the tokens that would complete a forbidden word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer


class BadWords:
    """Hold forbidden words as token ids; made once per request.

    Args:
        words: the token ids of each word.
    """

    def __init__(self, words: Iterable[Sequence[int]]) -> None:
        self._always: list[int] = []
        # By the token before the last one, so that the number of words hardly costs at each step.
        self._by_previous: dict[int, list[tuple[tuple[int, ...], int]]] = {}
        self._longest = 0
        for word in dict.fromkeys(tuple(word) for word in words):
            *beginning, last = word
            if beginning:
                self._by_previous.setdefault(beginning[-1], []).append((tuple(beginning), last))
                self._longest = max(self._longest, len(beginning))
            elif last not in self._always:
                self._always.append(last)

    @classmethod
    def tokenize(cls, words: Sequence[str], tokenizer: Tokenizer) -> BadWords:
        """Tokenise words, each with and without a blank before it: as within a text and as at its start.

        (vLLM leaves out the second form where it has another number of tokens, and with it many words.)
        """
        texts = [blank + word.lstrip() for word in words for blank in ("", " ")]
        return cls(ids for text in texts if (ids := tokenizer.encode(text, add_special_tokens=False)))

    def banned(self, token_ids: Sequence[int], num_prompt_tokens: int, drafts: Sequence[int]) -> list[int]:
        """Return the tokens that may not come next; one may occur twice.

        Args:
            token_ids: prompt and completion so far.
            num_prompt_tokens: words count from here on only.
            drafts: what is assumed to follow.
        """
        if not self._by_previous:
            return self._always
        start = max(num_prompt_tokens, len(token_ids) - self._longest)
        tail = (*token_ids[start:], *drafts)
        candidates = self._by_previous.get(tail[-1], ()) if tail else ()
        return self._always + [last for beginning, last in candidates if tail[-len(beginning) :] == beginning]
