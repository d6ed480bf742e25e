"""Calls as Jamba 1.5 writes them: a list between `<tool_calls>` and `</tool_calls>`.

Format: chat template of ai21labs/AI21-Jamba-1.5-Mini.
"""

from __future__ import annotations

from .json_calls import JsonCalls, Layout


class JambaParser(JsonCalls):
    """Read and write Jamba's calls."""

    markers = ("<tool_calls>", "</tool_calls>")
    layout = Layout(
        begin="<tool_calls>[\n    ",
        end="\n]</tool_calls>",
        separator=",\n    ",
        array=True,
        markers=("<tool_calls>",),
    )
