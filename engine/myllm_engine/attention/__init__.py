"""Compute attention over paged keys and values, for models from transformers."""

from .backend import AttentionBackend, AttentionCall
from .choose import make_backend
from .interface import ATTENTION_NAME, paged_attention, register_attention

__all__ = [
    "ATTENTION_NAME",
    "AttentionBackend",
    "AttentionCall",
    "make_backend",
    "paged_attention",
    "register_attention",
]
