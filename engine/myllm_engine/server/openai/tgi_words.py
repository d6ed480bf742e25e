"""Read what chat requests written for TGI spell otherwise than OpenAI's (router/src/lib.rs, `ChatRequest`).

Its `response_format` is read where the others are, in `constraints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..fields import refusal

_CHOICES = ("none", "auto", "required")


def from_tgi(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat request's body in OpenAI's words: a bare `tool_choice`, and `tool_prompt`.

    Raises:
        PydanticCustomError: a `tool_prompt` without tools, or after no text.
    """
    body = dict(body)
    choice, prompt = body.get("tool_choice"), body.pop("tool_prompt", None)
    if isinstance(choice, str) and choice in _names(body.get("tools")) and choice not in _CHOICES:
        body["tool_choice"] = {"type": "function", "function": {"name": choice}}
    if prompt is not None:
        if not isinstance(prompt, str):
            raise refusal("`tool_prompt` must be a string", "tool_prompt")
        if not body.get("tools") or choice == "none":
            raise refusal("`tool_prompt` needs `tools` that may be called", "tool_prompt")
        body["messages"] = _with_text(body.get("messages"), f"\n---\n{prompt}")
    return body


def _names(tools: Any) -> list[Any]:
    """Return the names of the tools; what is malformed is found later."""
    functions = [
        tool.get("function") for tool in (tools if isinstance(tools, list) else ()) if isinstance(tool, dict)
    ]
    return [function.get("name") for function in functions if isinstance(function, dict)]


def _with_text(messages: Any, text: str) -> Any:
    """Return messages the last of which ends with a text."""
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    if isinstance(content, str):
        content += text
    elif isinstance(content, list):
        content = [*content, {"type": "text", "text": text}]
    else:
        raise refusal("`tool_prompt` is put behind the last message's text, and there is none", "tool_prompt")
    return [*messages[:-1], {**last, "content": content}]
