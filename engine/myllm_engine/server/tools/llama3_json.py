"""Calls as Llama 3.1 and later write them: the answer is `{"name": …, "parameters": {…}}`.

Format: https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/ (JSON based tool calling). The
token `<|python_tag|>` may stand in front; several calls are separated by semicolons.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .json_calls import JsonCalls, Layout
from .parser import Format, Tool, const, either, sequence

_PYTHON_TAG = "<|python_tag|>"


class Llama3JsonParser(JsonCalls):
    """Read and write Llama's calls. With a brace at its beginning an answer is calls, else it is text."""

    markers = (_PYTHON_TAG,)
    anchored = True

    def __init__(self, special_tokens: Collection[str] = ()) -> None:
        super().__init__(special_tokens)
        # As plain text it is not looked for: what follows it would not keep to the schemas.
        markers = (_PYTHON_TAG,) if _PYTHON_TAG in special_tokens else ()
        self.layout = Layout(separator="; ", arguments="parameters", markers=markers)

    def calls(self, tools: Sequence[Tool], *, many: bool) -> Format:
        """See `ToolParser.calls`."""
        calls = super().calls(tools, many=many)
        if not self.layout.markers:
            return calls
        return either(calls, sequence(const(_PYTHON_TAG), calls))
