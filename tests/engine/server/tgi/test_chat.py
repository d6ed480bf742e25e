"""huggingface_hub's chats: OpenAI's shape, as TGI has it, asked for in the words of both."""

from __future__ import annotations

import json
import re

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
JOHN = [{"role": "user", "content": "John is 25 years old. Answer in JSON."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def chat(live) -> InferenceClient:
    """The client of a base URL; it sends the model "tgi"."""
    return InferenceClient(base_url=live.url, timeout=60)


def test_it_answers_whole_and_streamed(chat):
    answer = chat.chat_completion(CAPITAL, temperature=0.0, max_tokens=20, logprobs=True, top_logprobs=2)
    [choice] = answer.choices
    assert "Paris" in choice.message.content
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert answer.model == "smollm2"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [len(token.top_logprobs) for token in choice.logprobs.content] == [2] * len(
        choice.logprobs.content
    )
    *chunks, last = chat.chat_completion(
        CAPITAL, temperature=0.0, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert vars(last.usage) == vars(answer.usage)


async def test_it_answers_the_async_client(live):
    client = AsyncInferenceClient(base_url=live.url, timeout=60)
    stream = await client.chat_completion(CAPITAL, temperature=0.0, max_tokens=20, stream=True)
    assert "Paris" in "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    await client.close()


@pytest.mark.parametrize(
    "response_format",
    [
        # The client itself makes TGI's `{"type": "json_object", "value": …}` of this, OpenAI's.
        {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}},
        {"type": "json", "value": PERSON},
        {"type": "json", "value": json.dumps(PERSON)},
    ],
)
def test_it_answers_in_json(chat, response_format):
    answer = chat.chat_completion(JOHN, response_format=response_format, temperature=0.0, max_tokens=40)
    person = json.loads(answer.choices[0].message.content)
    assert person.keys() == {"name", "age"}


def test_tgis_schema_may_have_a_name(http: httpx.Client):
    named = {"type": "json_schema", "value": {"name": "person", "schema": PERSON}}
    for path, body in (
        ("/v1/chat/completions", {"messages": JOHN}),
        ("/v1/completions", {"prompt": "John is 25 years old. As JSON: "}),
    ):
        body = {**body, "response_format": named, "temperature": 0, "max_tokens": 40}
        [choice] = http.post(path, json=body).json()["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        assert json.loads(text).keys() == {"name", "age"}


def test_it_answers_in_a_pattern(chat):
    pattern = "[0-9]{2} years"
    answer = chat.chat_completion(JOHN, response_format={"type": "regex", "value": pattern}, max_tokens=20)
    assert re.fullmatch(pattern, answer.choices[0].message.content)


@pytest.mark.parametrize(
    ("response_format", "says"),
    [
        ({"type": "json"}, "`value` is required by this type"),
        ({"type": "regex", "value": 5}, "grammar is not valid: `response_format` must be a non-empty string"),
        ({"type": "text", "value": "a"}, "`value` goes with the types json, json_object, json_schema, regex"),
        ({"type": "json_object", "value": "{"}, "grammar is not valid: `response_format` is not JSON"),
        ({"type": "ebnf"}, "'ebnf' is not one of text, json_object, json_schema, structural_tag"),
    ],
)
def test_a_wrong_format_is_refused(http: httpx.Client, response_format, says):
    body = {"messages": CAPITAL, "response_format": response_format}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert says in error["message"]
    assert error["param"].startswith("response_format")


# A function may be named as OpenAI has it, as huggingface_hub's types have it, and as TGI takes it.
@pytest.mark.parametrize(
    "tool_choice",
    [
        {"type": "function", "function": {"name": "get_weather"}},
        {"function": {"name": "get_weather"}},
        "get_weather",
        "required",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_it_calls_a_tool(chat, tool_choice, stream):
    answer = chat.chat_completion(
        CAPITAL,
        tools=[WEATHER],
        tool_choice=tool_choice,
        tool_prompt="Call a function.",
        temperature=0.0,
        max_tokens=60,
        stream=stream,
    )
    if stream:
        calls = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or ()]
        assert [call.function.name for call in calls if call.function.name] == ["get_weather"]
        arguments = "".join(call.function.arguments or "" for call in calls)
    else:
        [call] = answer.choices[0].message.tool_calls
        assert call.function.name == "get_weather"
        arguments = call.function.arguments
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
