"""Keep to the time that a request may take (`--request-timeout`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from .errors import Kind, Problem, ProblemError
from .exchange import current

T = TypeVar("T")


def remaining() -> float | None:
    """Return the seconds that are left for the current request; None: there is no limit."""
    exchange = current.get()
    return None if exchange is None else exchange.remaining


def expired() -> ProblemError:
    """Build the error for a request that took too long."""
    return ProblemError(
        Problem(
            Kind.TIMEOUT,
            "The request took longer than this server gives to one (its --request-timeout): "
            "ask for fewer tokens, or for less at once",
        )
    )


async def in_time(work: Awaitable[T]) -> T:
    """Return the result of `work`; cancel it when the current request's time is up.

    Raises:
        ProblemError: the time is up.
    """
    left = remaining()
    if left is None:
        return await work
    try:
        async with asyncio.timeout(left) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise expired() from None
        raise
