"""What AutoGen sends through our entries, and how faults come out, against a server that says what it saw."""

from __future__ import annotations

import copy
import json
import pickle
import time
from typing import Any

import openai
import pytest
from autogen import ConversableAgent, LLMConfig, OpenAIWrapper

import myllm
from myllm.transport.options import HTTPOptions
from myllm_adapters.autogen import MyLLMConfigEntry, config_list, llm_config

M = [{"role": "user", "content": "hi"}]
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}
VLLM = {"dialect": "vllm"}  # so that the server is not asked what it is


def agent(config: Any) -> ConversableAgent:
    return ConversableAgent("agent", llm_config=config, system_message="", human_input_mode="NEVER")


def chunk(delta: dict[str, Any], finish_reason: str | None = None, usage: Any = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return f"data: {json.dumps({**ANSWER, 'object': 'chat.completion.chunk', 'choices': [choice], 'usage': usage})}\n\n"


def test_parameters_reach_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    entry = MyLLMConfigEntry(
        "m", url=f"{wire.url}/v1/", api_key="secret", **VLLM,
        temperature=1.7, max_new_tokens=9, top_k=5, min_p=0.1, repetition_penalty=1.2, stop="x", seed=1,
        n=1, logprobs=2, tags=["local"], extra_body={"min_tokens": "as it is"}, user="u",
        extra_headers={"X-Team": "blue"}, default_headers={"X-Floor": "3"},
    )  # fmt: skip
    assert agent(entry).generate_reply(M) == "ok"
    (seen,) = wire.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body.pop("messages")[-1] == M[0]
    assert seen.body == {
        "model": "m", "temperature": 1.7, "max_tokens": 9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2,
        "stop": ["x"], "seed": 1, "n": 1, "logprobs": True, "top_logprobs": 2, "min_tokens": "as it is",
        "user": "u",
    }  # fmt: skip
    assert seen.headers["authorization"] == "Bearer secret"
    assert (seen.headers["x-team"], seen.headers["x-floor"]) == ("blue", "3")
    assert len(seen.headers["x-request-id"]) >= 16
    assert not [name for name in seen.headers if name.startswith("x-stainless")]


def test_a_plain_entry_says_the_same(wire: Any) -> None:
    wire.answers(ANSWER)
    client = myllm.Client(
        [wire.url, f"{wire.url}/b"], model="m", api_key="secret", headers={"X-Team": "blue"},
        temperature=1.7, max_tokens=9, top_k=5, logprobs=2,
    )  # fmt: skip
    entries = config_list(client, plain=True, choice=["ok"], max_tokens=10, extra_body={"guided": 1})
    assert entries[0] == {
        "model": "m", "base_url": f"{wire.url}/v1", "api_key": "secret", "price": [0, 0], "max_tokens": 10,
        "default_headers": {"X-Team": "blue"},
        "extra_body": {
            "temperature": 1.7, "top_k": 5, "logprobs": True, "top_logprobs": 2, "guided": 1,
            "structured_outputs": {"choice": ["ok"]},
        },
    }  # fmt: skip
    assert entries[1] == {**entries[0], "base_url": f"{wire.url}/b/v1"}
    config = llm_config(
        client, plain=True, choice=["ok"], extra_body={"guided": 1}, routing_method="round_robin"
    )
    one = agent(config)
    assert [one.generate_reply(M) for _ in range(2)] == ["ok", "ok"]
    assert [seen.path for seen in wire.seen] == ["/v1/chat/completions", "/b/v1/chat/completions"]
    for seen in wire.seen:
        body = {name: value for name, value in seen.body.items() if name not in ("messages", "stream")}
        assert body == {"model": "m", "max_tokens": 9, **entries[0]["extra_body"]}
        assert (seen.headers["authorization"], seen.headers["x-team"]) == ("Bearer secret", "blue")


def test_a_plain_entry_needs_no_key(wire: Any) -> None:
    wire.answers(ANSWER)
    assert agent(llm_config("m", url=wire.url, plain=True)).generate_reply(M) == "ok"
    assert wire.seen[0].headers["authorization"] == "Bearer EMPTY"


def test_a_client_that_plain_entries_cannot_describe(wire: Any) -> None:
    http = HTTPOptions(auth=("u", "p"))
    with pytest.raises(myllm.InvalidParameterError, match="no place for certificates, proxies and passwords"):
        config_list(myllm.Client(wire.url, model="m", http=http), plain=True)
    with pytest.raises(myllm.UnsupportedFeatureError, match="'tgi' needs others"):
        config_list(myllm.Client(wire.url, model="m", dialect="tgi"), plain=True, n=3)


@pytest.mark.parametrize(
    ("constraint", "sent"),
    [
        ({"choice": ["ok", "no"]}, {"structured_outputs": {"choice": ["ok", "no"]}}),
        ({"guided_regex": "ok|no"}, {"structured_outputs": {"regex": "ok|no"}}),
        (
            {"json_schema": {"title": "A", "type": "string"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {
                        "name": "A",
                        "strict": True,
                        "schema": {"title": "A", "type": "string"},
                    },
                }
            },
        ),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
    ],
)
def test_constraints_reach_the_wire(wire: Any, constraint: dict[str, Any], sent: dict[str, Any]) -> None:
    content = (
        '{"a": "ok"}' if "response_format" in constraint else '"ok"' if "json_schema" in constraint else "ok"
    )
    message = {"role": "assistant", "content": content}
    wire.answers({**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    client = myllm.Client(wire.url, model="m", **VLLM, **constraint)
    for config in (llm_config("m", url=wire.url, **VLLM, **constraint), llm_config(client)):
        assert agent(config).generate_reply(M) == content
        body = wire.bodies[-1]
        assert {name: value for name, value in body.items() if name not in ("model", "messages")} == sent


def test_a_client_s_parameters_are_the_entry_s_unless_it_has_its_own(wire: Any) -> None:
    wire.answers(ANSWER)
    with myllm.Client(wire.url, model="m", **VLLM, temperature=0, max_tokens=5, top_k=3) as client:
        entry = MyLLMConfigEntry(client, max_tokens=6)
        assert entry.extra_body == {"temperature": 0, "max_tokens": 6, "top_k": 3}
        agent(LLMConfig(entry, temperature=0.9, top_p=0.5)).generate_reply(M)
    sent = {name: wire.bodies[0][name] for name in ("temperature", "top_p", "max_tokens", "top_k")}
    assert sent == {"temperature": 0, "top_p": 0.5, "max_tokens": 6, "top_k": 3}


def test_dspy_s_old_clients(wire: Any) -> None:
    wire.answers(ANSWER)
    old = myllm.HFClientVLLM("m", port=wire.port, max_tokens=5)
    assert agent(llm_config(old)).generate_reply(M) == "ok"
    assert (wire.bodies[0]["model"], wire.bodies[0]["max_tokens"], wire.bodies[0]["temperature"]) == (
        "m",
        5,
        0,
    )
    with pytest.raises(myllm.InvalidParameterError, match="`system_prompt='Be brief.'` of the HFClientVLLM"):
        llm_config(old.copy(system_prompt="Be brief."))
    with pytest.raises(myllm.InvalidParameterError, match="`model_type='text'` of the HFClientVLLM"):
        llm_config(old.copy(model_type="text"))


def test_address_and_key_from_the_environment(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answers(ANSWER)
    monkeypatch.setenv("MYLLM_BASE_URL", wire.url)
    monkeypatch.setenv("MYLLM_API_KEY", "mine")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # must not catch this machine
    assert agent(llm_config("m", **VLLM)).generate_reply(M) == "ok"
    assert wire.seen[0].headers["authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"temprature": 0.5}, myllm.UnknownParameterError, "Did you mean `temperature`"),
        ({"repitition_penalty": 1.1}, myllm.UnknownParameterError, "Did you mean `repetition_penalty`"),
        ({"top_p": 3}, myllm.InvalidParameterError, "top_p"),
        ({"extra_body": [1]}, myllm.InvalidParameterError, "must be a mapping"),
        ({"message_policy": "merge"}, myllm.InvalidParameterError, "must be one of 'as_is'"),
        ({"response_format": {"type": "json_schema"}}, myllm.InvalidParameterError, "has no schema"),
        ({"regex": "a", "choice": ["a"]}, myllm.InvalidParameterError, "give one of them"),
        ({"price": [1]}, ValueError, "at least 2 items"),
    ],
)
def test_refused_arguments(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    client = myllm.Client("http://localhost:1", model="m")
    for make in (
        lambda: MyLLMConfigEntry("m", **arguments),
        lambda: llm_config("m", **arguments),
        lambda: llm_config(client, **arguments),
    ):
        with pytest.raises(error, match=match):
            make()


@pytest.mark.parametrize(
    ("subject", "arguments", "match"),
    [
        ("m", {"port": 8000, "url": "http://localhost:9000"}, "names port 9000"),
        ("m", {"url": "http://a", "base_url": "http://b"}, "the same thing"),
        (myllm.Client(model="m"), {"port": 8000}, r"`port` is said when the client is made"),
        (myllm.Client(model="m"), {"hooks": []}, r"`hooks` is said when the client is made"),
        (myllm.AsyncClient(model="m"), {}, "is neither a `myllm.Client` nor the name of a model"),
    ],
)
def test_refused_places(subject: Any, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(myllm.InvalidParameterError, match=match):
        llm_config(subject, **arguments)


def test_a_parameter_that_the_server_has_no_word_for_is_refused_and_not_dropped(wire: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="`typical_p=0.5`: the chat endpoint"):
        agent(llm_config("m", url=wire.url, typical_p=0.5, **VLLM)).generate_reply(M)
    with pytest.raises(myllm.UnsupportedFeatureError, match="typical_p"):
        llm_config("m", url=wire.url, typical_p=0.5, plain=True)
    assert not wire.seen


def test_tools_survive_registration(wire: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    wire.answers(
        {**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}, ANSWER
    )
    assistant = agent(llm_config("m", url=wire.url, **VLLM, tool_choice="auto", parallel_tool_calls=False))
    user = ConversableAgent("user", llm_config=False, human_input_mode="NEVER")

    @user.register_for_execution()
    @assistant.register_for_llm(description="Add two numbers.")
    def add(a: int, b: int) -> int:
        return a + b

    result = user.initiate_chat(assistant, message="1 + 2?", max_turns=2)
    assert [b["tools"][0]["function"]["name"] for b in wire.bodies] == ["add", "add"]
    assert [(b["tool_choice"], b["parallel_tool_calls"]) for b in wire.bodies] == [("auto", False)] * 2
    assert wire.bodies[1]["messages"][-1] == {"tool_call_id": "c1", "role": "tool", "content": "3"}
    assert result.chat_history[-1]["content"] == "ok"
    assistant.update_tool_signature("add", is_remove=True)
    assistant.generate_reply(M)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & wire.bodies[-1].keys()
    assert all("x-request-id" in seen.headers for seen in wire.seen)  # our client throughout


def test_copies_and_dumps(wire: Any) -> None:
    wire.answers(ANSWER)
    entry = MyLLMConfigEntry("m", url=wire.url, api_key="secret", **VLLM, top_k=5)
    client = entry.http_client
    assert copy.copy(entry).http_client is copy.copy(client) is client
    assert copy.deepcopy(entry).http_client is client
    assert copy.deepcopy({"config_list": [entry]})["config_list"][0].http_client is client
    assert entry.model_dump()["http_client"] is client
    assert LLMConfig(entry).model_dump()["config_list"][0]["http_client"] is client
    assert json.loads(entry.model_dump_json())["http_client"] is None
    with pytest.raises(TypeError, match="ServedClient is not JSON serializable"):
        LLMConfig(entry).model_dump_json()  # AutoGen's own way; plain entries can be written
    assert "secret" in llm_config("m", url=wire.url, api_key="secret", plain=True).model_dump_json()
    assert "secret" not in repr(entry)
    assert "secret" not in repr(LLMConfig(entry))
    again = pickle.loads(pickle.dumps(entry))
    assert agent(again).generate_reply(M) == "ok"
    assert wire.bodies[0]["top_k"] == 5
    assert wire.seen[0].headers["authorization"] == "Bearer secret"


def test_the_client_s_cache_hooks_and_servers_hold(wire: Any, other_wire: Any) -> None:
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "loading"}}, 503)
    other_wire.answers(ANSWER)

    class Answers(myllm.Hook):
        def __init__(self) -> None:
            self.seen: list[myllm.CallRecord] = []

        def ended(self, record: myllm.CallRecord) -> None:
            self.seen.append(record)

    hook = Answers()
    with myllm.Client(
        [wire.url, other_wire.url], model="m", **VLLM, cache=myllm.Cache(), hooks=[hook], temperature=0
    ) as client:
        for _ in range(3):
            assert agent(llm_config(client)).generate_reply(M) == "ok"
    assert (len(wire.seen), len(other_wire.seen)) == (
        1,
        1,
    )  # the first one was busy, the rest came from the cache
    assert len(hook.seen) == 3


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, {"error": {"message": "no such thing"}}, openai.BadRequestError, "no such thing"),
        (400, "<html>", openai.BadRequestError, "html"),
        (401, {"error": {"message": "bad key"}}, openai.AuthenticationError, "MYLLM_API_KEY"),
        (403, {"error": {"message": "not you"}}, openai.PermissionDeniedError, "not you"),
        (404, {"error": {"message": "The model `m` is not here"}}, openai.NotFoundError, "is not here"),
        (418, {"error": {"message": "a teapot"}}, openai.APIStatusError, "a teapot"),
        (422, {"error": "bad", "error_type": "validation"}, openai.UnprocessableEntityError, "bad"),
        (429, {"error": {"message": "slow down"}}, openai.RateLimitError, "slow down"),
        (503, {"error": {"message": "loading"}}, openai.InternalServerError, "loading"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_statuses(
    wire: Any, status: int, body: Any, error: type[Exception], match: str, stream: bool
) -> None:
    wire.handler = lambda seen, reply: reply.json(body, status, {"retry-after-ms": "1"})
    with pytest.raises(error, match=match) as caught:
        agent(llm_config("m", url=wire.url, **VLLM, max_retries=1, stream=stream)).generate_reply(M)
    assert wire.url in str(caught.value)
    assert caught.value.status_code == status
    assert caught.value.request_id == wire.seen[-1].headers["x-request-id"]
    assert len(wire.seen) == (2 if status in (429, 503) else 1)


def test_a_filtered_answer_is_not_asked_of_the_next_entry(wire: Any) -> None:
    wire.handler = lambda seen, reply: reply.json(
        {"error": {"message": "filtered", "code": "content_filter"}}, 400
    )
    config = LLMConfig(*(MyLLMConfigEntry(name, url=wire.url, **VLLM) for name in ("first", "second")))
    with pytest.raises(openai.BadRequestError, match="filtered"):
        agent(config).generate_reply(M)
    assert [b["model"] for b in wire.bodies] == ["first"]


def test_refusals_go_on_to_the_next_entry(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        if seen.body["model"] == "first":
            reply.raw(b"nginx says no", 400)
        else:
            reply.json(ANSWER)

    wire.handler = handler
    config = LLMConfig(*(MyLLMConfigEntry(name, url=wire.url, **VLLM) for name in ("first", "second")))
    assert agent(config).generate_reply(M) == "ok"
    assert [b["model"] for b in wire.bodies] == ["first", "second"]


def test_several_servers_take_turns(wire: Any) -> None:
    wire.answers(ANSWER)
    one = agent(llm_config("m", url=[wire.url, f"{wire.url}/b"], **VLLM))
    for _ in range(4):
        one.generate_reply(M)
    assert [s.path for s in wire.seen] == ["/v1/chat/completions", "/b/v1/chat/completions"] * 2


def test_no_server(free_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(openai.APIConnectionError, match=f"No server answers at .*:{free_port}.*myllm serve"):
        agent(llm_config("m", port=free_port, max_retries=0)).generate_reply(M)
    assert time.monotonic() - start < 5


def test_connecting_has_a_limit_of_its_own(black_hole: int) -> None:
    entry = MyLLMConfigEntry("m", url=f"http://127.0.0.1:{black_hole}", timeout=myllm.Timeout(connect=0.3))
    start = time.monotonic()
    with pytest.raises(openai.APIConnectionError, match=r"did not accept a connection within 0.3 s"):
        agent(LLMConfig(entry, timeout=120)).generate_reply(M)
    assert time.monotonic() - start < 2


def test_silence_is_a_timeout(wire: Any) -> None:
    wire.handler = lambda seen, reply: time.sleep(1.6)
    entry = MyLLMConfigEntry("m", url=wire.url, **VLLM, timeout=myllm.Timeout(first_byte=0.2), max_retries=0)
    for config, seconds in (
        (LLMConfig(entry), "0.2"),
        (LLMConfig(MyLLMConfigEntry("m", url=wire.url, **VLLM, max_retries=0), timeout=1), "1"),
    ):
        with pytest.raises(TimeoutError) as caught:
            agent(config).generate_reply(M)
        assert f"{wire.url} was silent for {seconds} s" in str(caught.value.__cause__)


def test_token_counts_of_a_stream_come_whatever_chunk_has_them(wire: Any) -> None:
    counts = ANSWER["usage"]
    wire.streams(
        chunk({"role": "assistant", "content": "o"}),
        chunk({"content": "k"}, "stop", counts),
        "data: [DONE]\n\n",
    )
    one = agent(llm_config("m", url=wire.url, **VLLM, stream=True))
    assert one.generate_reply(M) == "ok"
    assert one.get_total_usage()["m"] == {"cost": 0, **counts}


def test_broken_stream(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        reply.start_stream()
        reply.piece(chunk({"content": "par"}))
        time.sleep(0.1)
        reply.hang_up()

    wire.handler = handler
    with pytest.raises(openai.APIConnectionError, match=f"The stream from {wire.url} broke off"):
        agent(llm_config("m", url=wire.url, **VLLM, stream=True, max_retries=0)).generate_reply(M)


def test_an_answer_that_breaks_its_constraint_is_an_error(wire: Any) -> None:
    wire.answers(ANSWER)
    with pytest.raises(openai.APIError, match="breaks `choice`"):
        agent(llm_config("m", url=wire.url, **VLLM, choice=["yes"])).generate_reply(M)


def test_a_text_is_continued(wire: Any) -> None:
    wire.answers(
        {
            **ANSWER,
            "object": "text_completion",
            "choices": [{"index": 0, "text": " end", "finish_reason": "stop"}],
        }
    )
    wrapper = OpenAIWrapper(config_list=config_list("m", url=wire.url, **VLLM, top_k=5))
    answer = wrapper.create(prompt="The")
    assert wrapper.extract_text_or_completion_object(answer) == [" end"]
    (seen,) = wire.seen
    assert (seen.path, seen.body) == ("/v1/completions", {"model": "m", "prompt": "The", "top_k": 5})


def test_other_routes_are_refused(wire: Any) -> None:
    client = MyLLMConfigEntry("m", url=wire.url, **VLLM).http_client
    with pytest.raises(
        openai.NotFoundError, match="POST /v1/responses: .* answers chats and completions only"
    ):
        client.post(f"{wire.url}/v1/responses", json={"model": "m"})
    assert not wire.seen


def test_autogen_s_logs_take_our_entries(wire: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from autogen import runtime_logging

    monkeypatch.chdir(tmp_path)
    wire.answers(ANSWER)
    runtime_logging.start(logger_type="file", config={"filename": "log.jsonl"})
    try:
        assert agent(llm_config("m", url=wire.url, api_key="secret", **VLLM)).generate_reply(M) == "ok"
    finally:
        runtime_logging.stop()
    (log,) = tmp_path.rglob("log.jsonl")
    text = log.read_text()
    assert '"chatcmpl-1' in text or "chatcmpl-1" in text
    assert "secret" not in text
