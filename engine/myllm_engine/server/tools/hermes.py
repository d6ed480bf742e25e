"""Calls as Hermes 2 Pro and Qwen2.5 write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Format: https://github.com/NousResearch/Hermes-Function-Calling; chat template of Qwen/Qwen2.5-7B-Instruct.
"""

from __future__ import annotations

from .json_calls import JsonCalls, Layout


class HermesParser(JsonCalls):
    """Read and write Hermes' calls, each between tags of its own."""

    markers = ("<tool_call>", "</tool_call>")
    layout = Layout(begin="<tool_call>\n", end="\n</tool_call>", separator="\n", markers=("<tool_call>",))
