"""Chat completions: thoughts, roles, templates, and what a request may not ask for."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

from myllm_engine.server.reasoning import ReasoningParser, registry
from myllm_engine.server.settings import ServerSettings

CHAT = [{"role": "user", "content": "What is the capital of France?"}]
QWEN3 = ServerSettings(reasoning_parser="qwen3")
THOUGHT = "<think>\nHm, Paris.\n</think>\n\nIt is Paris."


def sdk(live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="-", max_retries=0, timeout=60)


def script(said, text: str, size: int = 1000) -> list:
    """Return outputs that say a text in pieces, one token a byte."""
    data = text.encode()
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    ends = [None] * (len(parts) - 1) + ["stop"]
    return [said((part.decode(), part, end)) for part, end in zip(parts, ends, strict=True)]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_thoughts_are_apart_from_the_answer(scripted, said, size):
    with scripted(script(said, THOUGHT, size), QWEN3) as live, sdk(live) as client:
        answer = client.chat.completions.create(model="Scripted", messages=CHAT)
        message = answer.choices[0].message
        assert (message.content, message.reasoning) == ("It is Paris.", "Hm, Paris.")
        assert message.reasoning_content == message.reasoning
        # One token a byte: those of the markers count.
        assert answer.usage.completion_tokens_details.reasoning_tokens == THOUGHT.index("</think>") + 8
        chunks = list(
            client.chat.completions.create(
                model="Scripted", messages=CHAT, stream=True, stream_options={"include_usage": True}
            )
        )
    deltas = [chunk.choices[0].delta for chunk in chunks[:-1]]
    assert "".join(delta.content or "" for delta in deltas) == "It is Paris."
    assert "".join(getattr(delta, "reasoning", "") for delta in deltas) == "Hm, Paris."
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == "Hm, Paris."
    assert chunks[-1].usage == answer.usage


def test_thoughts_can_be_left_out_and_counted_alone(scripted, said):
    with scripted(script(said, THOUGHT, 4), QWEN3) as live:
        body = {"messages": CHAT, "include_reasoning": False}
        answer = httpx.post(f"{live.url}/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"] == {
            "role": "assistant",
            "content": "It is Paris.",
            "refusal": None,
        }
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] > 10
        stream = httpx.post(f"{live.url}/v1/chat/completions", json={**body, "stream": True}).text
    *events, _, _ = stream.split("\n\n")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta["content"] for delta in deltas) == "It is Paris."
    assert {*deltas[0], *deltas[-1]} == {"role", "content"}


def test_thoughts_that_do_not_end_are_no_answer(scripted, said):
    with scripted([said(("<think>Hm, ", b"<think>Hm, ", "length"))], QWEN3) as live, sdk(live) as client:
        answer = client.chat.completions.create(model="Scripted", messages=CHAT)
        assert answer.choices[0].message.content is None
        assert answer.choices[0].message.reasoning == "Hm,"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens_details.reasoning_tokens == answer.usage.completion_tokens


def test_calls_come_behind_thoughts(scripted, said):
    text = '<think>Time?</think>\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    settings = ServerSettings(
        reasoning_parser="qwen3", enable_auto_tool_choice=True, tool_call_parser="hermes"
    )
    tools = [{"type": "function", "function": {"name": "now"}}]
    with scripted(script(said, text, 3), settings) as live, sdk(live) as client:
        message = (
            client.chat.completions.create(model="Scripted", messages=CHAT, tools=tools).choices[0].message
        )
    assert (message.reasoning, message.content) == ("Time?", None)
    assert message.tool_calls[0].function.name == "now"


def test_the_model_thinks_before_a_constrained_answer(serve):
    """The prompt opens the thoughts, as many templates do; the bundled model then ends them when it is made to."""
    template = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>"
    settings = ServerSettings(reasoning_parser="qwen3", trust_request_chat_template=True)
    question = [{"role": "user", "content": "Repeat exactly: Four. </think>"}]
    extra = {"chat_template": template, "structured_outputs": {"regex": "[0-9]{2}"}}
    with serve(settings) as live, sdk(live) as client:
        arguments = {"model": "smollm2", "messages": question, "temperature": 0, "max_tokens": 40}
        answer = client.chat.completions.create(**arguments, extra_body=extra)
    [choice] = answer.choices
    assert choice.message.reasoning
    assert choice.finish_reason == "stop"
    assert choice.message.content.isdigit()
    assert len(choice.message.content) == 2
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens


# `. ` and `Hello` are tokens of the bundled model's, which begins with the latter; the others are special ones.
LIMITED = {
    "plain": ReasoningParser(starts=("Hello",), ends=(".",)),
    "special": ReasoningParser(starts=("<repo_name>",), ends=("<file_sep>",), implicit=True),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("parser", "budget"), [("plain", 3), ("plain", 0), ("special", 4)])
def test_thoughts_end_when_their_tokens_are_spent(serve, monkeypatch, parser, budget, stream):
    monkeypatch.setitem(registry._PARSERS, parser, LIMITED[parser])
    body = {"messages": [{"role": "user", "content": "Say hi"}], "temperature": 0, "max_tokens": 16}
    with serve(ServerSettings(reasoning_parser=parser)) as live:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="-")
        free = client.chat.completions.create(model="default", **body)
        assert free.usage.completion_tokens_details.reasoning_tokens > budget + 2
        extra = {"thinking_token_budget": budget}
        if stream:
            chunks = list(
                client.chat.completions.create(
                    model="default",
                    **body,
                    extra_body=extra,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
            usage, deltas = chunks[-1].usage, [chunk.choices[0].delta for chunk in chunks[:-1]]
            reasoning = "".join(getattr(delta, "reasoning", None) or "" for delta in deltas)
            content = "".join(delta.content or "" for delta in deltas)
        else:
            answer = client.chat.completions.create(model="default", **body, extra_body=extra)
            usage, message = answer.usage, answer.choices[0].message
            reasoning, content = message.reasoning or "", message.content
    marks = 2 if parser == "plain" else 1
    assert usage.completion_tokens_details.reasoning_tokens == budget + marks
    # They are the beginning of those that nothing ends.
    assert free.choices[0].message.reasoning.startswith(reasoning)
    assert bool(reasoning) == bool(budget)
    assert content


def test_a_constrained_answer_follows_limited_thoughts(serve, monkeypatch):
    monkeypatch.setitem(registry._PARSERS, "special", LIMITED["special"])
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"enum": [7]}}, "required": ["a"]}},
    }
    body = {
        "messages": [{"role": "user", "content": "Say hi"}],
        "temperature": 0,
        "max_tokens": 60,
        "thinking_token_budget": 4,
    }
    with serve(ServerSettings(reasoning_parser="special")) as live:
        for more, read in (
            ({"guided_choice": ["yes", "no"]}, lambda message: message["content"] in ("yes", "no")),
            (
                {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False},
                lambda message: json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"a": 7},
            ),
        ):
            answer = httpx.post(f"{live.url}/v1/chat/completions", json={**body, **more}, timeout=60).json()
            assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5
            assert read(answer["choices"][0]["message"]), answer


def test_anthropics_budget_limits_thoughts(serve, monkeypatch):
    monkeypatch.setitem(registry._PARSERS, "special", LIMITED["special"])
    asked = [{"role": "user", "content": "Say hi"}]
    body = {"messages": asked, "temperature": 0, "max_tokens": 12}
    with serve(ServerSettings(reasoning_parser="special")) as live:

        def kinds(thinking):
            answer = httpx.post(f"{live.url}/v1/messages", json={**body, "thinking": thinking}, timeout=60)
            return [block["type"] for block in answer.json()["content"]]

        assert kinds({"type": "enabled", "budget_tokens": 4}) == ["thinking", "text"]
        assert kinds({"type": "adaptive"}) == ["thinking"]


def test_thoughts_that_no_single_token_ends_cannot_be_limited(serve):
    with serve(ServerSettings(reasoning_parser="granite")) as live:
        body = {"messages": [{"role": "user", "content": "hi"}], "thinking_token_budget": 4}
        response = httpx.post(f"{live.url}/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert "ends its thoughts with one token" in response.json()["error"]["message"]


def test_without_a_parser_nothing_is_told_of_thoughts(scripted, said):
    with scripted(script(said, THOUGHT)) as live:
        answer = httpx.post(f"{live.url}/v1/chat/completions", json={"messages": CHAT}).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": THOUGHT, "refusal": None}
    assert "completion_tokens_details" not in answer["usage"]


def test_the_server_s_role_answers_and_echoes(scripted, said):
    settings = ServerSettings(response_role="poet")
    with scripted(script(said, " and blue"), settings) as live, sdk(live) as client:
        arguments = {"model": "Scripted", "messages": [*CHAT, {"role": "assistant", "content": "Red"}]}
        message = client.chat.completions.create(**arguments).choices[0].message
        assert (message.role, message.content) == ("poet", " and blue")
        goes_on = {"echo": True, "add_generation_prompt": False, "continue_final_message": True}
        message = client.chat.completions.create(**arguments, extra_body=goes_on).choices[0].message
        assert (message.role, message.content) == ("assistant", "Red and blue")
        chunks = list(client.chat.completions.create(**arguments, extra_body=goes_on, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "Red and blue"
        # The last message is the user's, and the answer is not.
        not_echoed = {"echo": True}
        message = (
            client.chat.completions.create(model="Scripted", messages=CHAT, extra_body=not_echoed)
            .choices[0]
            .message
        )
        assert message.content == " and blue"


VARIABLES = """{{ documents | tojson }} {{ reasoning_effort }} {{ enable_thinking }} {{ mood }} {{ add_generation_prompt }}"""


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({}, "null None None grey True"),
        ({"documents": [{"title": "A", "text": "b"}]}, '[{"title": "A", "text": "b"}] None None grey True'),
        ({"reasoning_effort": "low"}, "null low True grey True"),
        ({"reasoning_effort": "none"}, "null none False grey True"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": 1, "mood": "blue"}},
            "null none 1 blue True",
        ),
        ({"add_generation_prompt": False}, "null None None grey False"),
    ],
)
def test_the_template_gets_its_variables(scripted, said, engine, body, prompt):
    settings = ServerSettings(
        trust_request_chat_template=True,
        default_chat_template_kwargs={"mood": "grey", "reasoning_effort": None, "enable_thinking": None},
    )
    with scripted(script(said, "ok"), settings, tokenizer=engine.tokenizer) as live:
        answer = httpx.post(
            f"{live.url}/v1/chat/completions",
            json={"messages": CHAT, "max_tokens": 5, "chat_template": VARIABLES, **body},
        )
        assert answer.status_code == 200, answer.text
        [request] = live.engine.requests
    assert engine.tokenizer.decode(request.prompt_token_ids) == prompt


FUNCTION = {"name": "f"}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def user(**fields) -> dict:
    return {"messages": [{"role": "user", "content": "x", **fields}]}


def assistant(**fields) -> dict:
    return {"messages": [{"role": "assistant", **fields}]}


@pytest.fixture(scope="module")
def healthy(scripted, said):
    settings = ServerSettings(tool_call_parser="qwen3_coder")
    with scripted(script(said, "ok"), settings) as live, httpx.Client(base_url=live.url) as client:
        yield client


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        # Tools.
        ({"tools": []}, "tools", "at least 1"),
        ({"tools": [TOOL]}, "tool_choice", "--enable-auto-tool-choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice", "--enable-auto-tool-choice"),
        ({"tool_choice": "required"}, "tool_choice", "`tool_choice` needs `tools`"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "must be 'none', 'auto', 'required'"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice", "got '5'"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice", "must be"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice",
            "names 'g', and the `tools` are f",
        ),
        ({"tools": [TOOL, TOOL], "tool_choice": "required"}, "tools", "Two tools have the name 'f'"),
        (
            {"tools": [{"type": "custom", "custom": {}}]},
            "tools[0].type",
            "'custom' do not exist on this server",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is required"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name", "got 'a b'"),
        (
            {"tools": [{"function": {"name": "f", "paramters": {}}}]},
            "tools[0].function.paramters",
            "`parameters`",
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools[0].function.parameters",
            "must describe an object",
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"anyOf": []}}}], "tool_choice": "required"},
            "tools",
            "the function 'f'",
        ),
        (
            {"tools": [TOOL], "tool_choice": "required", "guided_regex": "a"},
            "guided_regex",
            "`tool_choice` leaves none",
        ),
        ({"functions": [FUNCTION], "tools": [TOOL]}, "functions", "exclude each other"),
        ({"function_call": "auto"}, "function_call", "needs `functions`"),
        ({"functions": [FUNCTION]}, "tool_choice", "--enable-auto-tool-choice"),
        # Messages.
        (user(role="robot"), "messages[0].role", "system, developer, user, assistant, tool and function"),
        (
            user(tool_calls=[CALL]),
            "messages[0].tool_calls",
            "Only the assistant's messages have `tool_calls`; this one is the user's",
        ),
        (user(tool_call_id="1"), "messages[0].tool_call_id", "Only messages of the role 'tool'"),
        (user(role="function"), "messages[0].name", "`name` is required"),
        (assistant(), "messages[0].content", "`content` is required"),
        (
            assistant(tool_calls=[{**CALL, "function": {"name": "f", "arguments": "[1]"}}]),
            "messages[0].tool_calls[0].function.arguments",
            "must be a JSON object",
        ),
        (
            assistant(tool_calls=[CALL], function_call=CALL["function"]),
            "messages[0].function_call",
            "exclude each other",
        ),
        # What is not offered.
        ({"chat_template": "{{ 1 }}"}, "chat_template", "--trust-request-chat-template"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort", "must be one of none, minimal, low"),
        ({"modalities": ["text", "audio"]}, "modalities", "hears and speaks nothing"),
        ({"audio": {"voice": "x"}}, "audio", "hears and speaks nothing"),
        ({"moderation": {"model": "x"}}, "moderation", "no model that judges"),
        ({"mm_processor_kwargs": {"a": 1}}, "mm_processor_kwargs", "as it was trained to"),
        (assistant(content="x", audio={"id": "1"}), "messages[0].audio", "hears and speaks nothing"),
        (user(content=[{"type": "video_url"}]), "messages[0].content", "'video_url' are not read"),
        ({"web_search_options": {}}, "web_search_options", "searches nothing"),
        ({"verbosity": "low"}, "verbosity", "how long the answer shall be"),
    ],
)
def test_a_wrong_chat_request_is_explained(healthy, change, param, says):
    response = healthy.post("/v1/chat/completions", json={"messages": CHAT, **change})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert says in error["message"]
    assert error["param"] == param


@pytest.mark.parametrize(
    "change",
    [
        {"modalities": ["text"], "verbosity": "medium", "prediction": {"type": "content", "content": "x"}},
        {"tool_choice": "auto", "parallel_tool_calls": True, "function_call": "none"},
        {"tools": [TOOL], "tool_choice": "none"},
        {"documents": [], "include_reasoning": True, "reasoning_effort": None},
        {"top_logprobs": 0},
        {"tools": [{"function": {"name": "f", "defer_loading": False}}], "tool_choice": "none"},
        assistant(content=None, refusal="No."),
        assistant(content=None, reasoning="I think, and was cut off."),
        assistant(content=[{"type": "refusal", "refusal": "No."}, {"type": "text", "text": "Sorry."}]),
    ],
)
def test_what_asks_for_nothing_is_accepted(healthy, change):
    response = healthy.post("/v1/chat/completions", json={"messages": CHAT, **change})
    assert response.status_code == 200, response.text


def test_a_schema_that_cannot_be_enforced_is_refused(http):
    tool = {
        "function": {"name": "f", "parameters": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}
    }
    body = {"messages": CHAT, "tools": [tool], "tool_choice": "required"}
    response = http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert "uniqueItems" in response.json()["error"]["message"]
