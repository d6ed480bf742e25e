"""Find reasoning parsers by name: our own, and those that packages bring."""

from __future__ import annotations

from importlib.metadata import entry_points

from .parser import ReasoningParser

ENTRY_POINTS = "myllm.reasoning_parsers"

_THINK = {"starts": ("<think>",), "ends": ("</think>",)}

# The names are vLLM's; the formats are those of the models' chat templates.
_PARSERS: dict[str, ReasoningParser] = {
    # The templates of R1 and its kin open the thoughts themselves, and early ones do not.
    "deepseek_r1": ReasoningParser(**_THINK, implicit=True),
    "deepseek_v3": ReasoningParser(**_THINK),
    "glm45": ReasoningParser(**_THINK),
    "granite": ReasoningParser(
        starts=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
    ),
    "minimax_m2": ReasoningParser(**_THINK, implicit=True),
    "mistral": ReasoningParser(starts=("[THINK]",), ends=("[/THINK]",)),
    "olmo3": ReasoningParser(**_THINK, implicit=True),
    "qwen3": ReasoningParser(**_THINK),
    "seed_oss": ReasoningParser(starts=("<seed:think>",), ends=("</seed:think>",)),
    "step3": ReasoningParser(**_THINK, implicit=True),
}


def find(name: str) -> ReasoningParser:
    """Return the parser of a name.

    Raises:
        ValueError: there is none; the message names those that are.
    """
    if name in _PARSERS:
        return _PARSERS[name]
    others = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if name in others:
        parser = others[name].load()
        if not isinstance(parser, ReasoningParser):
            raise ValueError(f"the reasoning parser {name!r} must be a `ReasoningParser`; it is {parser!r}")
        return parser
    known = ", ".join(sorted({*_PARSERS, *others}))
    raise ValueError(f"`reasoning_parser` {name!r} is not known; known are {known}")
