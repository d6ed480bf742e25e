"""Carry the attention backend and the LoRA plan of the running forward pass past the model code.

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
    from .models.lora import LoraPlan


class _ForwardContext(threading.local):
    backend: AttentionBackend | None = None
    lora: LoraPlan | None = None


_context = _ForwardContext()


@contextmanager
def forward_context(backend: AttentionBackend, lora: LoraPlan | None = None) -> Iterator[None]:
    """Make `backend` compute the attention of every model call of this thread inside the block.

    With `lora`, linear layers add what the tokens' adapters add.
    """
    previous = _context.backend, _context.lora
    _context.backend, _context.lora = backend, lora
    try:
        yield
    finally:
        _context.backend, _context.lora = previous


def current_backend() -> AttentionBackend:
    """Return the backend of the running forward pass."""
    if _context.backend is None:
        raise RuntimeError("The model was called outside of `forward_context`: paged attention has no batch")
    return _context.backend


def current_lora() -> LoraPlan | None:
    """Return which adapters the tokens of the running forward pass take; None: none of them takes one."""
    return _context.lora
