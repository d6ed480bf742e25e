"""Write what TGI tells about a text: its tokens, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...request import TokenLogprob
from ...tokenizer import Tokenizer
from ..generation import Completion
from ..text import TokenTexts


def token(tokenizer: Tokenizer, score: TokenLogprob, text: str) -> dict[str, Any]:
    """Return a generated token; `text` is its share of the whole text."""
    return _token(tokenizer, score.token_id, text, score.logprob)


def top_tokens(tokenizer: Tokenizer, score: TokenLogprob) -> list[dict[str, Any]]:
    """Return the likeliest tokens at the place of a generated one."""
    return [
        _token(tokenizer, token_id, tokenizer.token_text(token_id), logprob)
        for token_id, logprob in score.top
    ]


def prefill(
    tokenizer: Tokenizer, token_ids: Sequence[int], scores: Sequence[TokenLogprob | None]
) -> list[dict[str, Any]]:
    """Return the tokens of a prompt; the first has no probability."""
    return [
        {
            "id": token_id,
            "text": tokenizer.token_text(token_id),
            "logprob": None if score is None else score.logprob,
        }
        for token_id, score in zip(token_ids, scores, strict=True)
    ]


def details(
    tokenizer: Tokenizer,
    completion: Completion,
    *,
    seed: int | None,
    prefill: list[dict[str, Any]],
    top: bool,
) -> dict[str, Any]:
    """Return the `details` of a text; `top` tells whether likely tokens were asked for."""
    pieces = TokenTexts(tokenizer)(completion.token_ids)
    result: dict[str, Any] = {
        "finish_reason": finish_reason(completion),
        "generated_tokens": len(completion.token_ids),
        "seed": seed,
        "prefill": prefill,
        "tokens": [
            token(tokenizer, score, piece) for score, piece in zip(completion.logprobs, pieces, strict=True)
        ],
    }
    if top:
        result["top_tokens"] = [top_tokens(tokenizer, score) for score in completion.logprobs]
    return result


def finish_reason(completion: Completion) -> str | None:
    """Return TGI's word for why a text ended; None while it has not, or was broken off."""
    if completion.finish_reason == "stop":
        return "eos_token" if completion.stop_reason is None else "stop_sequence"
    return "length" if completion.finish_reason == "length" else None


def _token(tokenizer: Tokenizer, token_id: int, text: str, logprob: float) -> dict[str, Any]:
    return {"id": token_id, "text": text, "logprob": logprob, "special": tokenizer.is_special(token_id)}
