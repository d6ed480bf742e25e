"""Write log-probabilities in the shapes of completions and of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...request import TokenLogprob
from ...tokenizer import Tokenizer
from ..errors import invalid
from ..text import TokenTexts

# JSON has no infinity; vLLM's stand-in for it.
_FLOOR = -9999.0


def check_limit(value: int | None, limit: int, param: str) -> None:
    """Refuse more alternatives than the server gives."""
    if value is not None and not 0 <= value <= limit:
        raise invalid(
            f"`{param}` must be between 0 and {limit} (the server's --max-logprobs); got {value}", param
        )


def chat_logprobs(tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return `{"content": [...]}`, one entry per token, the end-of-sequence token included."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token_id),
            "logprob": max(logprob, _FLOOR),
            "bytes": list(tokenizer.token_bytes(token_id)),
        }

    return {
        "content": [
            {
                **entry(token.token_id, token.logprob),
                "top_logprobs": [entry(token_id, logprob) for token_id, logprob in token.top],
            }
            for token in logprobs
        ]
    }


class CompletionLogprobs:
    """Write a sequence's log-probabilities chunk by chunk, keeping count of the text's length."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces = TokenTexts(tokenizer)
        self._offset = 0

    def __call__(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the next tokens as `{text_offset, token_logprobs, tokens, top_logprobs}`.

        `top_logprobs` holds the chosen token, too: k or k + 1 entries, as vLLM has it.
        """
        offsets = []
        for piece in self._pieces(token.token_id for token in logprobs):
            offsets.append(self._offset)
            self._offset += len(piece)
        return {
            "text_offset": offsets,
            "token_logprobs": [max(token.logprob, _FLOOR) for token in logprobs],
            "tokens": [self._tokenizer.token_text(token.token_id) for token in logprobs],
            "top_logprobs": [self._alternatives(token) for token in logprobs],
        }

    def _alternatives(self, token: TokenLogprob) -> dict[str, float]:
        # Different tokens may have the same text: the first, likeliest one stays.
        texts: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            texts.setdefault(self._tokenizer.token_text(token_id), max(logprob, _FLOOR))
        return texts
