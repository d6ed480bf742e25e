"""Calls as Granite 3 writes them: a list behind `<|tool_call|>` (3.0) or `<tool_call>` (3.1 and later).

Format: chat templates of ibm-granite/granite-3.0-8b-instruct and granite-3.1-8b-instruct. Granite 4 writes
Hermes' calls.
"""

from __future__ import annotations

from collections.abc import Collection

from .json_calls import JsonCalls, Layout


class GraniteParser(JsonCalls):
    """Read and write Granite's calls, which nothing ends but their list."""

    markers = ("<|tool_call|>", "<tool_call>")

    def __init__(self, special_tokens: Collection[str] = ()) -> None:
        super().__init__(special_tokens)
        marker = "<|tool_call|>" if "<|tool_call|>" in special_tokens else "<tool_call>"
        self.layout = Layout(begin=f"{marker}[", end="]", array=True, markers=self.markers)
