"""Carry the attention backend of the running forward pass past the model code.

Some models in transformers drop keyword arguments that they do not know on the way to the attention function
(stablelm, nemotron), so the batch's tables cannot travel as arguments. They lie here instead, one place per
thread: two engines of one process run in two threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention.backend import AttentionBackend


class _ForwardContext(threading.local):
    backend: AttentionBackend | None = None


_context = _ForwardContext()


@contextmanager
def forward_context(backend: AttentionBackend) -> Iterator[None]:
    """Make `backend` compute the attention of every model call of this thread inside the block."""
    previous = _context.backend
    _context.backend = backend
    try:
        yield
    finally:
        _context.backend = previous


def current_backend() -> AttentionBackend:
    """Return the backend of the running forward pass."""
    if _context.backend is None:
        raise RuntimeError("The model was called outside of `forward_context`: paged attention has no batch")
    return _context.backend
