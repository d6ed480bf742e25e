"""TGI's spellings in chat requests."""

from __future__ import annotations

import pytest
from pydantic_core import PydanticCustomError

from myllm_engine.server.openai.tgi_words import from_tgi

TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
HELLO = {"role": "user", "content": "Hello"}


def test_a_bare_name_is_a_function():
    body = {"tools": TOOLS, "tool_choice": "get_weather"}
    expected = {"type": "function", "function": {"name": "get_weather"}}
    assert from_tgi(body) == {"tools": TOOLS, "tool_choice": expected}


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [HELLO]},
        {"tools": TOOLS, "tool_choice": "required"},
        {"tools": TOOLS, "tool_choice": "get_whether"},
        {"tools": [{"type": "function", "function": {"name": "auto"}}], "tool_choice": "auto"},
        {"tools": TOOLS, "tool_choice": {"function": {"name": "get_weather"}}},
        {"tools": [1, {"function": 2}, {}], "tool_choice": "x"},
        {"tools": 5, "tool_choice": "x"},
    ],
)
def test_everything_else_is_left_alone(body):
    assert from_tgi(body) == body


def test_a_tool_prompt_ends_the_last_message():
    body = {"messages": [HELLO, HELLO], "tools": TOOLS, "tool_prompt": "Call one."}
    assert from_tgi(body)["messages"] == [HELLO, {"role": "user", "content": "Hello\n---\nCall one."}]
    assert body["messages"] == [HELLO, HELLO]
    part = {"type": "text", "text": "Hello"}
    body["messages"] = [{"role": "user", "content": [part]}]
    prompt = {"type": "text", "text": "\n---\nCall one."}
    assert from_tgi(body)["messages"] == [{"role": "user", "content": [part, prompt]}]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"messages": [HELLO]}, "needs `tools`"),
        ({"messages": [HELLO], "tools": TOOLS, "tool_choice": "none"}, "needs `tools`"),
        ({"messages": [], "tools": TOOLS}, "there is none"),
        ({"messages": [{"role": "user", "content": None}], "tools": TOOLS}, "there is none"),
        ({"messages": [HELLO], "tools": TOOLS, "tool_prompt": 5}, "must be a string"),
    ],
)
def test_a_tool_prompt_without_a_place_is_refused(body, says):
    with pytest.raises(PydanticCustomError, match=says):
        from_tgi({"tool_prompt": "Call one.", **body})
