"""Read and write calls of tools in the formats of model families.

A new format is a subclass of `ToolParser`: in a file of its own here, in a file that `--tool-parser-plugin`
names and that registers it with `register("name")`, or in a package with an entry point of the group
`myllm.tool_parsers`.
"""

from .parser import (
    Arguments,
    Call,
    Event,
    Tool,
    ToolParser,
    ToolReader,
    either,
    sequence,
    text_not_beginning_with,
)
from .plain import PlainNamedParser, PlainParser
from .registry import find, load_plugin, register

__all__ = [
    "Arguments",
    "Call",
    "Event",
    "PlainNamedParser",
    "PlainParser",
    "Tool",
    "ToolParser",
    "ToolReader",
    "either",
    "find",
    "load_plugin",
    "register",
    "sequence",
    "text_not_beginning_with",
]
