"""Find parsers of tool calls by name: our own, a plug-in file's, and those that packages bring."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from .granite import GraniteParser
from .hermes import HermesParser
from .internlm import InternLMParser
from .jamba import JambaParser
from .llama3_json import Llama3JsonParser
from .mistral import MistralParser
from .parser import ToolParser
from .pythonic import PythonicParser
from .qwen3_coder import Qwen3CoderParser

ENTRY_POINTS = "myllm.tool_parsers"

# The names are vLLM's; `qwen` is there for those who look for it.
_PARSERS: dict[str, type[ToolParser]] = {
    "granite": GraniteParser,
    "granite4": HermesParser,
    "hermes": HermesParser,
    "internlm": InternLMParser,
    "jamba": JambaParser,
    "llama3_json": Llama3JsonParser,
    "llama4_json": Llama3JsonParser,
    "llama4_pythonic": PythonicParser,
    "mistral": MistralParser,
    "pythonic": PythonicParser,
    "qwen": HermesParser,
    "qwen3_coder": Qwen3CoderParser,
    "qwen3_json": HermesParser,
    "qwen3_xml": Qwen3CoderParser,
}


def register(name: str) -> Callable[[type[ToolParser]], type[ToolParser]]:
    """Make a class known under a name, in place of one that had it: a decorator for plug-in files."""

    def keep(parser: type[ToolParser]) -> type[ToolParser]:
        if not (isinstance(parser, type) and issubclass(parser, ToolParser)):
            raise TypeError(f"the tool parser {name!r} must be a subclass of `ToolParser`; got {parser!r}")
        _PARSERS[name] = parser
        return parser

    return keep


def load_plugin(path: str) -> None:
    """Run a file that registers parsers.

    Raises:
        ValueError: there is no such file, or it fails.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"`tool_parser_plugin` {path!r} is not a file")
    spec = importlib.util.spec_from_file_location(f"myllm_tool_parser_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"`tool_parser_plugin` {path!r} is not a Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code
        raise ValueError(
            f"`tool_parser_plugin` {path!r} fails with {type(error).__name__}: {error}"
        ) from error


def find(name: str) -> type[ToolParser]:
    """Return the parser of a name.

    Raises:
        ValueError: there is none; the message names those that are.
    """
    if name in _PARSERS:
        return _PARSERS[name]
    others = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in others:
        return register(name)(others[name].load())
    known = ", ".join(sorted({*_PARSERS, *others}))
    raise ValueError(f"`tool_call_parser` {name!r} is not known; known are {known}")
