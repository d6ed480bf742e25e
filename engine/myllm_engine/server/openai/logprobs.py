"""Write log-probabilities in the shapes of completions and of chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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


def _name(tokenizer: Tokenizer, token_id: int, as_id: bool) -> str:
    # Different tokens may have the same text, and half characters have none: each id is a name of its own.
    return f"token_id:{token_id}" if as_id else tokenizer.token_text(token_id)


def chat_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob], *, as_ids: bool = False
) -> dict[str, Any]:
    """Return `{"content": [...]}`, one entry per token, the end-of-sequence token included.

    With `as_ids` tokens are named "token_id:5"; `bytes` are those of their text in any case.
    """

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token": _name(tokenizer, token_id, as_ids),
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


def prompt_logprobs(
    tokenizer: Tokenizer, logprobs: Sequence[TokenLogprob | None], *, top: int | None = None
) -> list[dict[str, dict[str, Any]] | None]:
    """Return vLLM's form: null for a prompt's first token, then entries by token id, likeliest first.

    `top` limits the likely tokens of each place; the prompt's own token is there in any case.
    """

    def entry(token_id: int, logprob: float, rank: int) -> dict[str, Any]:
        return {
            "logprob": max(logprob, _FLOOR),
            "rank": rank,
            "decoded_token": tokenizer.token_text(token_id),
        }

    def entries(token: TokenLogprob) -> dict[str, dict[str, Any]]:
        likely = {
            str(id_): entry(id_, value, rank) for rank, (id_, value) in enumerate(token.top[:top], start=1)
        }
        return {**likely, str(token.token_id): entry(token.token_id, token.logprob, token.rank)}

    return [None if token is None else entries(token) for token in logprobs]


class CompletionLogprobs:
    """Write a sequence's log-probabilities chunk by chunk, keeping count of the text's length.

    With `as_ids` tokens are named "token_id:5".
    """

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._pieces = TokenTexts(tokenizer)
        self._offset = 0
        self._echoed: tuple[Sequence[int], Sequence[TokenLogprob | None]] = (), ()

    def begin(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], *, top: int | None = None
    ) -> None:
        """Put the tokens of an echoed prompt in front of the next ones; its first one has no probability.

        `top` limits the likely tokens of each place.
        """
        cut = [None if score is None else replace(score, top=score.top[:top]) for score in logprobs]
        self._echoed = token_ids, cut

    def __call__(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Return the next tokens as `{text_offset, token_logprobs, tokens, top_logprobs}`.

        `top_logprobs` holds the chosen token, too: k or k + 1 entries, as vLLM has it.
        """
        (echoed, scores), self._echoed = self._echoed, ((), ())
        tokens = [*echoed, *(token.token_id for token in logprobs)]
        every = [*scores, *logprobs]
        offsets = []
        for piece in self._pieces(tokens):
            offsets.append(self._offset)
            self._offset += len(piece)
        return {
            "text_offset": offsets,
            "token_logprobs": [None if score is None else max(score.logprob, _FLOOR) for score in every],
            "tokens": [_name(self._tokenizer, token_id, self._as_ids) for token_id in tokens],
            "top_logprobs": [None if score is None else self._alternatives(score) for score in every],
        }

    def _alternatives(self, token: TokenLogprob) -> dict[str, float]:
        # Different tokens may have the same text: the first, likeliest one stays.
        texts: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            texts.setdefault(_name(self._tokenizer, token_id, self._as_ids), max(logprob, _FLOOR))
        return texts
