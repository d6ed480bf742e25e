"""Calls as InternLM 2.5 writes them: JSON with `parameters`, between three tokens.

    <|action_start|><|plugin|>
    {"name": …, "parameters": {…}}<|action_end|>

Format: https://github.com/InternLM/InternLM/blob/main/agent/README.md
"""

from __future__ import annotations

from collections.abc import Sequence

from .json_calls import JsonCalls, Layout
from .parser import Format, Tool, triggered

_START, _PLUGIN, _END = "<|action_start|>", "<|plugin|>", "<|action_end|>"


class InternLMParser(JsonCalls):
    """Read and write InternLM's calls."""

    markers = (_START, _PLUGIN, _END)
    layout = Layout(
        begin=f"{_START}{_PLUGIN}\n",
        end=_END,
        separator="\n",
        arguments="parameters",
        markers=(_START + _PLUGIN,),
    )

    def free(self, tools: Sequence[Tool], *, many: bool, reserved: str = "") -> Format:
        """See `ToolParser.free`. The first of the two tokens alone must trigger: there is no other action."""
        return triggered([_START], self._tags(tools), many=many)
