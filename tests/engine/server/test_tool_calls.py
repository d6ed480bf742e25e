"""Tools through the openai SDK, on the bundled model and on a scripted one."""

from __future__ import annotations

import json
from typing import Literal

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from myllm_engine.server.settings import ServerSettings

ASK = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days", "unit"],
    "additionalProperties": False,
}
# The SDK's stream helper reads strict functions only.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Look it up.",
            "parameters": WEATHER,
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now", "strict": True}},
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
HERMES = ServerSettings(enable_auto_tool_choice=True, tool_call_parser="hermes")
# The bundled model repeats this, and so begins a call of its own accord.
BEGIN = [{"role": "user", "content": "Repeat after me, exactly: <tool_call>"}]


def sdk(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(live):
    with sdk(live) as client:
        yield client


@pytest.fixture(scope="module")
def hermes(serve, engine):
    """A client of a server that lets the model choose."""
    with serve(engine, HERMES) as live, sdk(live) as client:
        yield client


def create(client, **arguments):
    return client.chat.completions.create(
        **{
            "model": "smollm2",
            "messages": ASK,
            "tools": TOOLS,
            "temperature": 0,
            "max_tokens": 60,
            **arguments,
        }
    )


def final(client, **arguments):
    """Return what the SDK's stream helper puts together."""
    arguments = {
        "model": "smollm2",
        "messages": ASK,
        "tools": TOOLS,
        "temperature": 0,
        "max_tokens": 60,
        **arguments,
    }
    with client.chat.completions.stream(**arguments) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


def test_a_named_function_is_called_under_its_schema(client):
    answer = create(client, tool_choice=NAMED)
    [choice] = answer.choices
    [call] = choice.message.tool_calls
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    assert "Paris" in call.function.arguments
    assert (choice.message.content, choice.finish_reason) == (None, "stop")
    assert call.id.startswith("chatcmpl-tool-")
    streamed = final(client, tool_choice=NAMED).choices[0]
    assert streamed.message.tool_calls[0].function.arguments == call.function.arguments
    assert streamed.finish_reason == "stop"


def test_arguments_stream_in_fragments(client):
    chunks = list(create(client, tool_choice=NAMED, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    [first, *others] = [call for delta in deltas for call in delta.tool_calls or ()]
    assert first.id.startswith("chatcmpl-tool-")
    assert (first.type, first.function.name, first.index) == ("function", "get_weather", 0)
    assert len(others) > 5
    assert {(call.id, call.type, call.function.name, call.index) for call in others} == {
        (None, None, None, 0)
    }
    arguments = first.function.arguments + "".join(call.function.arguments for call in others)
    jsonschema.validate(json.loads(arguments), WEATHER)
    assert all(not delta.content for delta in deltas)


@pytest.mark.parametrize("parallel", [True, False])
def test_required_makes_one_call_or_more(client, parallel):
    answer = create(client, tool_choice="required", parallel_tool_calls=parallel)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls
    assert len({call.id for call in calls}) == len(calls)
    assert (len(calls) > 1) == parallel
    streamed = final(client, tool_choice="required", parallel_tool_calls=parallel).choices[0]
    assert [c.function.model_dump(exclude={"parsed_arguments"}) for c in streamed.message.tool_calls] == [
        c.function.model_dump() for c in calls
    ]
    assert streamed.finish_reason == "tool_calls"


async def test_the_async_sdk_calls_tools(live):
    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0) as client:
        answer = await create(client, tool_choice=NAMED)
        async with client.chat.completions.stream(
            model="smollm2", messages=ASK, tools=TOOLS, tool_choice=NAMED, temperature=0
        ) as stream:
            streamed = await stream.get_final_completion()
    [call] = answer.choices[0].message.tool_calls
    assert streamed.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


class GetWeather(BaseModel):
    """Look up the weather."""

    city: str = Field(max_length=12)
    unit: Literal["C", "F"]


class Person(BaseModel):
    name: str = Field(max_length=10)
    age: int = Field(ge=1, le=120)


def test_parse_gives_pydantic_models(client):
    answer = client.chat.completions.parse(
        model="smollm2",
        messages=[{"role": "user", "content": "Ada is 36. Who is it?"}],
        response_format=Person,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)
    answer = client.chat.completions.parse(
        model="smollm2",
        messages=ASK,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_the_model_s_own_calls_keep_to_the_schema(hermes):
    answer = create(hermes, messages=BEGIN, tools=TOOLS[:1])
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Repeat after me, exactly:"
    for call in choice.message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    streamed = final(hermes, messages=BEGIN, tools=TOOLS[:1]).choices[0]
    assert streamed.message.content == choice.message.content
    assert [call.function.arguments for call in streamed.message.tool_calls] == [
        call.function.arguments for call in choice.message.tool_calls
    ]
    assert streamed.finish_reason == "tool_calls"


def test_the_model_may_answer_with_text(hermes, client):
    plain = create(client, tools=openai.omit, max_tokens=12).choices[0].message.content
    choice = create(hermes, max_tokens=12).choices[0]
    assert choice.message.content == plain
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"


def test_text_beside_tools_keeps_to_the_response_format(hermes):
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": Person.model_json_schema()}}
    choice = create(hermes, response_format=form).choices[0]
    if choice.message.tool_calls:
        assert choice.finish_reason == "tool_calls"
    else:
        Person.model_validate_json(choice.message.content)
    only = create(hermes, response_format=form, tool_choice=NAMED).choices[0]
    assert only.message.tool_calls[0].function.name == "get_weather"


def test_allowed_tools_narrow_the_choice_down(client):
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    answer = create(client, tool_choice=choice, parallel_tool_calls=False)
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["get_weather"]


def test_a_call_that_is_cut_off_says_so(client):
    choice = create(client, tool_choice="required", max_tokens=12).choices[0]
    assert choice.finish_reason == "length"


def test_several_choices_have_calls_of_their_own(client):
    answer = create(client, tool_choice=NAMED, n=2, temperature=1.5, seed=1)
    first, second = (choice.message.tool_calls[0] for choice in answer.choices)
    assert first.id != second.id
    assert first.function.arguments != second.function.arguments


def test_functions_are_honoured_as_they_were(client):
    functions = [tool["function"] for tool in TOOLS]
    arguments = {"model": "smollm2", "messages": ASK, "temperature": 0, "functions": functions}
    choice = client.chat.completions.create(**arguments, function_call={"name": "get_weather"}).choices[0]
    assert choice.message.function_call.name == "get_weather"
    jsonschema.validate(json.loads(choice.message.function_call.arguments), WEATHER)
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    chunks = list(
        client.chat.completions.create(**arguments, function_call={"name": "get_weather"}, stream=True)
    )
    parts = [part for chunk in chunks if (part := chunk.choices[0].delta.function_call)]
    assert [part.name for part in parts[:2]] == ["get_weather", None]
    assert "".join(part.arguments for part in parts) == choice.message.function_call.arguments


def test_a_legacy_call_of_the_model_s_own_ends_as_one(scripted, said):
    text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    with scripted([said((text, b"x", "stop"))], HERMES) as live, sdk(live) as client:
        arguments = {"model": "Scripted", "messages": ASK, "functions": [{"name": "now"}]}
        choice = client.chat.completions.create(**arguments).choices[0]
        assert (choice.finish_reason, choice.message.function_call.name) == ("function_call", "now")
        chunks = list(client.chat.completions.create(**arguments, stream=True))
        assert chunks[-1].choices[0].finish_reason == "function_call"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_text_and_calls_come_in_order(scripted, said, size):
    text = (
        'I look.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    )
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    script = [
        said((part, b"x", "stop" if number == len(parts) - 1 else None)) for number, part in enumerate(parts)
    ]
    with scripted(script, HERMES) as live, sdk(live) as client:
        choice = create(client, model="Scripted", max_tokens=9).choices[0]
        streamed = final(client, model="Scripted", max_tokens=9).choices[0]
        for one in (choice, streamed):
            assert one.message.content == "I look."
            assert [(call.function.name, call.function.arguments) for call in one.message.tool_calls] == [
                ("now", "{}"),
                ("get_weather", '{"city": "Ulm"}'),
            ]
            assert one.finish_reason == "tool_calls"


def test_mistral_s_ids_have_nine_characters(scripted, said):
    settings = ServerSettings(enable_auto_tool_choice=True, tool_call_parser="mistral")
    script = [said(('[TOOL_CALLS][{"name": "now", "arguments": {}}]', b"x", "stop"))]
    with scripted(script, settings) as live, sdk(live) as client:
        [call] = create(client, model="Scripted", max_tokens=9).choices[0].message.tool_calls
    assert call.id.isalnum()
    assert len(call.id) == 9


TEMPLATE = """{% if tools %}TOOLS {{ tools | tojson }}{{ '\\n' }}{% endif %}
{% for m in messages %}
{{ m.role }}{% if m.tool_call_id %} to {{ m.tool_call_id }}{% endif %}: {{ m.content }}
{%- for c in m.tool_calls or [] %} CALL {{ c.id }} {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}
{%- if m.reasoning_content %} THOUGHT {{ m.reasoning_content }}{% endif %}{{ '\\n' }}
{%- endfor %}"""


def prompt(scripted, said, engine, **body) -> str:
    """Return the prompt that a request makes."""
    settings = ServerSettings(trust_request_chat_template=True)
    with scripted([said(("ok", b"ok", "stop"))], settings, tokenizer=engine.tokenizer) as live:
        answer = httpx.post(
            f"{live.url}/v1/chat/completions", json={"chat_template": TEMPLATE, "max_tokens": 5, **body}
        )
        assert answer.status_code == 200, answer.text
        return engine.tokenizer.decode(live.engine.requests[-1].prompt_token_ids, skip_special_tokens=False)


def test_calls_and_their_results_reach_the_template(scripted, said, engine):
    messages = [
        *ASK,
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "Look it up.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                },
                {"id": "call_2", "function": {"name": "now", "arguments": ""}, "index": 1},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Rain"}]},
        {"role": "assistant", "content": "Hm", "function_call": {"name": "now", "arguments": "{}"}},
        {"role": "function", "name": "now", "content": "Noon"},
    ]
    assert prompt(scripted, said, engine, messages=messages) == (
        "user: What is the weather in Paris?\n"
        'assistant:  CALL call_1 get_weather {"city": "Paris"} CALL call_2 now {} THOUGHT Look it up.\n'
        "tool to call_1: Rain\n"
        "assistant: Hm CALL  now {}\n"
        "tool: Noon\n"
    )


def test_tools_reach_the_template_unless_none_may_be_called(scripted, said, engine):
    seen = prompt(scripted, said, engine, messages=ASK, tools=TOOLS, tool_choice="required")
    assert json.loads(seen.splitlines()[0].removeprefix("TOOLS ")) == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Look it up.", "parameters": WEATHER},
        },
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    ]
    assert "TOOLS" not in prompt(scripted, said, engine, messages=ASK, tools=TOOLS, tool_choice="none")
