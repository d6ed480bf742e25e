"""Constrain what is generated: JSON Schema, regular expressions, choices, grammars and structural tags.

llguidance compiles a constraint to a parser over the tokenizer's vocabulary (about 1 ms) and says before each
token which ones keep the text valid (about 50 µs). It refuses a schema that it cannot enforce exactly
instead of enforcing half of it. It is imported on first use: the engine runs without it.
"""

from .compiler import GrammarCompiler
from .masks import allowed_tokens
from .matcher import Matcher, forced_tokens, valid_drafts

__all__ = [
    "GrammarCompiler",
    "Matcher",
    "allowed_tokens",
    "forced_tokens",
    "valid_drafts",
]
