"""AutoGen's cancellation of what is being waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from autogen_core import CancellationToken

T = TypeVar("T")


class Wait:
    """Waits for one thing after another; the token cancels the one that is being waited for, from any thread.

    A token keeps whatever is linked to it for as long as it lives, so a stream links itself once and not each
    of its chunks.
    """

    def __init__(self, token: CancellationToken | None) -> None:
        self._token = token
        self._current: asyncio.Future[Any] | None = None
        if token is not None:
            token.add_callback(self._cancel)

    async def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return what `coroutine` comes to.

        Raises:
            asyncio.CancelledError: the token was cancelled, now or before.
        """
        if self._token is None:
            return await coroutine
        current: asyncio.Future[T] = asyncio.ensure_future(coroutine)
        self._current = current
        if self._token.is_cancelled():
            current.cancel()  # before it has begun
        try:
            return await current
        finally:
            self._current = None

    def _cancel(self) -> None:
        current = self._current
        if current is not None:
            current.get_loop().call_soon_threadsafe(current.cancel)
