"""Log what is asked of the engine: prompts and parameters (`--enable-log-requests`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields

from ..request import Request, RequestOutput, SamplingParams
from ..tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_DEFAULTS = SamplingParams()


class RequestLog:
    """Observe the requests of an engine; see `loop.Observer`.

    Args:
        tokenizer: of the engine.
        max_length: characters of the prompt, and as many of its token ids, that are logged; None: all.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int | None) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length

    def accepted(self, request: Request) -> None:
        """Log the request; parameters only where they are not the default."""
        # A character may take several tokens, and a token has one at least.
        token_ids = request.prompt_token_ids
        head = token_ids if self._max_length is None else token_ids[: 4 * self._max_length]
        prompt = self._tokenizer.decode(head, skip_special_tokens=False)
        params = request.params
        logger.info(
            "request received",
            extra={
                "request_id": request.request_id,
                "prompt": prompt[: self._max_length],
                "prompt_token_ids": list(token_ids[: self._max_length]),
                "prompt_tokens": len(token_ids),
                "lora": request.lora,
                "params": {
                    field.name: getattr(params, field.name)
                    for field in fields(params)
                    if getattr(params, field.name) != getattr(_DEFAULTS, field.name)
                },
            },
        )

    def delivered(self, outputs: Sequence[RequestOutput]) -> None:
        """Log nothing: answers are not asked for."""

    def lost(self, request_ids: Sequence[str]) -> None:
        """Log nothing."""
