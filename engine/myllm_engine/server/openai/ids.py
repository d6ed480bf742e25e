"""Name answers, and the engine's requests behind them."""

from __future__ import annotations

import uuid

from fastapi import Request as HttpRequest

_LONGEST = 256


def answer_id(prefix: str, request_id: str | None, http: HttpRequest) -> str:
    """Return the id of an answer: `prefix`, and the X-Request-Id header or the `request_id` field."""
    header = http.headers.get("x-request-id", "")
    return f"{prefix}-{header[:_LONGEST] or request_id or uuid.uuid4().hex}"


def engine_id(answer: str, index: int = 0) -> str:
    """Return the id of one of an answer's requests in the engine.

    It is unique although clients may name two of their requests alike.
    """
    return f"{answer}-{index}-{uuid.uuid4().hex[:8]}"
