"""What AutoGen sends through our entry, and how faults come out, against a server that says what it saw."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import time
from typing import Any

import openai
import pytest
from autogen import ConversableAgent, LLMConfig

import myllm
from myllm_adapters.autogen import MyLLMConfigEntry, llm_config

M = [{"role": "user", "content": "hi"}]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


def agent(config: Any) -> ConversableAgent:
    return ConversableAgent("agent", llm_config=config, system_message="", human_input_mode="NEVER")


def test_parameters_reach_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    entry = MyLLMConfigEntry(
        "m", url=f"{wire.url}/v1/", api_key="secret",
        temperature=1.7, max_new_tokens=9, top_k=5, min_p=0.1, repetition_penalty=1.2, stop="x", seed=1,
        n=1, logprobs=2, parallel_tool_calls=False, tags=["local"], extra_body={"guided_regex": "a+"},
        extra_headers={"X-Team": "blue"},
    )  # fmt: skip
    assert agent(entry).generate_reply(M) == "ok"
    (seen,) = wire.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body.pop("messages")[-1] == M[0]
    assert seen.body == {
        "model": "m", "temperature": 1.7, "max_tokens": 9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2,
        "stop": ["x"], "seed": 1, "n": 1, "logprobs": True, "top_logprobs": 2, "parallel_tool_calls": False,
        "guided_regex": "a+", "stream": False,
    }  # fmt: skip
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["x-team"] == "blue"
    assert len(seen.headers["x-request-id"]) >= 16


@pytest.mark.parametrize(
    ("constraint", "sent"),
    [
        ({"choice": ["ok", "no"]}, {"structured_outputs": {"choice": ["ok", "no"]}}),
        ({"guided_regex": "ok|no"}, {"structured_outputs": {"regex": "ok|no"}}),
        (
            {"json_schema": {"title": "A", "type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "A",
                        "strict": True,
                        "schema": {"title": "A", "type": "object"},
                    },
                }
            },
        ),
    ],
)
def test_constraints_reach_the_wire(wire: Any, constraint: dict[str, Any], sent: dict[str, Any]) -> None:
    wire.answers(ANSWER)
    assert agent(llm_config("m", url=wire.url, **constraint)).generate_reply(M) == "ok"
    (body,) = wire.bodies
    assert {
        name: value for name, value in body.items() if name not in ("model", "messages", "stream")
    } == sent


def test_address_and_key_from_the_environment(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answers(ANSWER)
    monkeypatch.setenv("MYLLM_BASE_URL", wire.url)
    monkeypatch.setenv("MYLLM_API_KEY", "mine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not catch this machine
    assert agent(llm_config("m")).generate_reply(M) == "ok"
    assert wire.seen[0].headers["authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"temprature": 0.5}, myllm.UnknownParameterError, "Did you mean `temperature`"),
        ({"repitition_penalty": 1.1}, myllm.UnknownParameterError, "Did you mean `repetition_penalty`"),
        ({"typical_p": 0.5}, myllm.UnsupportedFeatureError, "typical_p"),
        ({"top_p": 3}, myllm.InvalidParameterError, "top_p"),
        ({"port": 8000, "url": "http://localhost:9000"}, myllm.InvalidParameterError, "names port 9000"),
        ({"url": "http://a", "base_url": "http://b"}, myllm.InvalidParameterError, "the same thing"),
        ({"temperature": 3}, ValueError, "less than or equal to 2"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        MyLLMConfigEntry("m", **arguments)
    with pytest.raises(error, match=match):
        llm_config("m", **arguments)


def test_application_settings_fill_gaps_only(wire: Any) -> None:
    wire.answers(ANSWER)
    entry = MyLLMConfigEntry("m", url=wire.url, temperature=0)
    agent(LLMConfig(entry, temperature=0.9, max_tokens=5)).generate_reply(M)
    assert (wire.bodies[0]["temperature"], wire.bodies[0]["max_tokens"]) == (0, 5)


def test_tools_survive_registration(wire: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    wire.answers(
        {**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}, ANSWER
    )
    assistant = agent(llm_config("m", url=wire.url))
    user = ConversableAgent("user", llm_config=False, human_input_mode="NEVER")

    @user.register_for_execution()
    @assistant.register_for_llm(description="Add two numbers.")
    def add(a: int, b: int) -> int:
        return a + b

    result = user.initiate_chat(assistant, message="1 + 2?", max_turns=2)
    assert [b["tools"][0]["function"]["name"] for b in wire.bodies] == ["add", "add"]
    assert wire.bodies[1]["messages"][-1] == {"tool_call_id": "c1", "role": "tool", "content": "3"}
    assert result.chat_history[-1]["content"] == "ok"
    assistant.update_tool_signature("add", is_remove=True)
    assistant.generate_reply(M)
    assert "tools" not in wire.bodies[-1]
    assert all("x-request-id" in seen.headers for seen in wire.seen)  # our client throughout


def test_copies_and_dumps(wire: Any) -> None:
    wire.answers(ANSWER)
    entry = MyLLMConfigEntry("m", url=wire.url, api_key="secret", top_k=5)
    client = entry.http_client
    assert copy.deepcopy(entry).http_client is client
    assert copy.deepcopy({"config_list": [entry]})["config_list"][0].http_client is client
    assert entry.model_dump()["http_client"] is client
    assert LLMConfig(entry).model_dump()["config_list"][0]["http_client"] is client
    assert json.loads(entry.model_dump_json())["http_client"] is None
    assert "secret" not in repr(entry)
    assert "secret" not in repr(LLMConfig(entry))
    again = pickle.loads(pickle.dumps(entry))
    assert agent(again).generate_reply(M) == "ok"
    assert wire.bodies[0]["top_k"] == 5


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, {"error": {"message": "no such thing"}}, openai.BadRequestError, "no such thing"),
        (400, "<html>", openai.APIStatusError, "html"),
        (401, {"error": {"message": "bad key"}}, openai.AuthenticationError, "MYLLM_API_KEY"),
        (404, {"error": {"message": "The model `m` is not here"}}, openai.NotFoundError, "is not here"),
        (422, {"error": "bad", "error_type": "validation"}, openai.UnprocessableEntityError, "bad"),
        (429, {"error": {"message": "slow down"}}, openai.RateLimitError, "slow down"),
        (503, {"error": {"message": "loading"}}, openai.InternalServerError, "loading"),
    ],
)
def test_statuses(wire: Any, status: int, body: Any, error: type[Exception], match: str) -> None:
    wire.handler = lambda seen, reply: reply.json(body, status, {"retry-after-ms": "1"})
    with pytest.raises(error, match=match) as caught:
        agent(llm_config("m", url=wire.url, max_retries=1)).generate_reply(M)
    assert wire.url in str(caught.value)
    assert len(wire.seen) == (2 if status in (429, 503) else 1)


def test_refusals_go_on_to_the_next_entry(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        if seen.body["model"] == "first":
            reply.raw(b"nginx says no", 400)
        else:
            reply.json(ANSWER)

    wire.handler = handler
    config = LLMConfig(MyLLMConfigEntry("first", url=wire.url), MyLLMConfigEntry("second", url=wire.url))
    assert agent(config).generate_reply(M) == "ok"
    assert [b["model"] for b in wire.bodies] == ["first", "second"]


def test_round_robin(wire: Any) -> None:
    wire.answers(ANSWER)
    config = llm_config("m", url=[wire.url, f"{wire.url}/b"], routing_method="round_robin")
    one = agent(config)
    for _ in range(4):
        one.generate_reply(M)
    assert [s.path for s in wire.seen] == ["/v1/chat/completions", "/b/v1/chat/completions"] * 2


def test_no_server(free_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(openai.APIConnectionError, match=f"No server answers at .*:{free_port}.*myllm serve"):
        agent(llm_config("m", port=free_port)).generate_reply(M)
    assert time.monotonic() - start < 5


def test_connecting_has_a_limit_of_its_own(black_hole: int) -> None:
    entry = MyLLMConfigEntry("m", url=f"http://127.0.0.1:{black_hole}", timeout=myllm.Timeout(connect=0.3))
    start = time.monotonic()
    with pytest.raises(openai.APIConnectionError, match=r"did not accept a connection within 0.3 s"):
        agent(LLMConfig(entry, timeout=120)).generate_reply(M)
    assert time.monotonic() - start < 2


def test_silence_is_a_timeout(wire: Any) -> None:
    wire.handler = lambda seen, reply: time.sleep(0.6)
    start = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        agent(llm_config("m", url=wire.url, timeout=0.2)).generate_reply(M)
    assert time.monotonic() - start < 0.6  # not tried again: it had its time
    assert f"{wire.url} was silent for 0.2 s" in str(caught.value.__cause__)


def test_broken_stream(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        choice = {"index": 0, "delta": {"content": "par"}, "finish_reason": None}
        chunk = {**ANSWER, "object": "chat.completion.chunk", "choices": [choice], "usage": None}
        reply.start_stream()
        reply.piece(f"data: {json.dumps(chunk)}\n\n")
        time.sleep(0.1)
        reply.hang_up()

    wire.handler = handler
    with pytest.raises(openai.APIConnectionError, match=f"The connection to {wire.url} broke"):
        agent(llm_config("m", url=wire.url, stream=True, max_retries=0)).generate_reply(M)


def test_the_extra_is_named_when_autogen_is_missing() -> None:
    code = (
        "import sys; sys.modules['autogen'] = None\n"
        "try:\n    import myllm_adapters.autogen\n"
        "except ImportError as exc:\n    print(type(exc).__name__, exc)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.startswith("MissingExtraError")
    assert "pip install 'myllm-suite[autogen]'" in out
