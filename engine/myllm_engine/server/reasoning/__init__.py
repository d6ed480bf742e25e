"""Tell a model's thoughts from its answer.

A new format is a `ReasoningParser` in `registry`, or in a package with an entry point of the group
`myllm.reasoning_parsers`.
"""

from .parser import Opening, ReasoningParser, ThoughtLimit
from .reader import ReasoningReader
from .registry import find

__all__ = ["Opening", "ReasoningParser", "ReasoningReader", "ThoughtLimit", "find"]
