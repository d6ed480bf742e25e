"""Dialects: what each kind of server calls things. Data and pure functions, no I/O."""

from __future__ import annotations

from ..errors import InvalidParameterError
from ._base import DONE, ChunkReader, Dialect
from .llamacpp import LlamaCppDialect
from .ollama import OllamaDialect
from .openai import OpenAIDialect
from .sglang import SGLangDialect
from .tgi import TGIDialect
from .vllm import VLLMDialect

DIALECTS: dict[str, Dialect] = {
    d.name: d
    for d in (
        VLLMDialect(),
        TGIDialect(),
        SGLangDialect(),
        LlamaCppDialect(),
        OllamaDialect(),
        OpenAIDialect(),
    )
}
"""The dialects by name."""


def get_dialect(dialect: str | Dialect) -> Dialect:
    """Return a dialect by name, or the one given.

    Raises:
        InvalidParameterError: no dialect of that name.
    """
    if not isinstance(dialect, str):
        return dialect
    if dialect not in DIALECTS:
        raise InvalidParameterError(
            f"`dialect={dialect!r}` is not known: use one of {', '.join(map(repr, DIALECTS))}.",
            param="dialect",
        )
    return DIALECTS[dialect]


__all__ = [
    "DIALECTS",
    "DONE",
    "ChunkReader",
    "Dialect",
    "LlamaCppDialect",
    "OllamaDialect",
    "OpenAIDialect",
    "SGLangDialect",
    "TGIDialect",
    "VLLMDialect",
    "get_dialect",
]
