"""What the DSPy adapter sends, and how it answers faults: DSPy itself against a server that says what it saw."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import json
import multiprocessing
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnsupportedFeatureError,
    LMUnsupportedModelError,
)

import myllm
import myllm.hooks
from myllm.dialects import OpenAIDialect
from myllm.policies import LeastInFlight
from myllm_adapters.dspy import LM, Client, Engine, HFClientTGI, HFClientVLLM

# Whatever DSPy will remove next, our class must not be what uses it.
pytestmark = pytest.mark.filterwarnings("error::DeprecationWarning")


class OwnDialect(OpenAIDialect):
    """A dialect as a user may write one: it adds a field."""

    name = "own"

    def requests(self, call: Any, server: Any) -> Any:
        (request,) = super().requests(call, server)
        request.json["own"] = True
        return [request]


FIELDS = "[[ ## reasoning ## ]]\nBecause.\n\n[[ ## answer ## ]]\n{}\n\n[[ ## completed ## ]]"


@dataclass
class Wire:
    """A server that keeps what it is sent and answers as `handler` says: (status, body, headers)."""

    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    handler: Callable[[dict[str, Any]], tuple[int, Any, dict[str, str]]] = lambda body: (
        200,
        chat(FIELDS.format("Paris")),
        {},
    )

    def says(self, *texts: str) -> None:
        """Answer with choices of these texts."""
        self.handler = lambda body: (200, chat(*texts), {})

    def streams(self, *events: dict[str, Any] | str, broken: bool = False) -> None:
        """Answer with these events; `broken` leaves the end out."""
        lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events]
        if not broken:
            lines.append("data: [DONE]\n\n")
        self.handler = lambda body: (200, "".join(lines).encode(), {"Content-Type": "text/event-stream"})


def chat(*texts: str | None, message: dict[str, Any] | None = None, finish: str = "stop") -> dict[str, Any]:
    """Return a chat completion with a choice for each text."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": text, **(message or {})},
                "finish_reason": finish,
            }
            for i, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }


def chunk(delta: dict[str, Any] | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chunk of a chat stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, **more}]
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12} if delta is None else None
    return {"id": "chatcmpl-2", "object": "chat.completion.chunk", "model": "m", "choices": choices,
            "usage": usage}  # fmt: skip


@pytest.fixture
def wire() -> Iterator[Wire]:
    state = Wire()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.bodies.append(body)
            state.paths.append(self.path)
            state.headers.append({k.lower(): v for k, v in self.headers.items()})
            status, answer, headers = state.handler(body)
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients that leave early are what some of these tests are about."""

    http = QuietServer(("127.0.0.1", 0), Handler)
    state.port = http.server_port
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield state
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def fresh_cache() -> None:
    dspy.configure_cache(enable_disk_cache=False)


def vllm(wire: Wire, **kwargs: Any) -> HFClientVLLM:
    return HFClientVLLM("m", wire.port, "http://127.0.0.1", **kwargs)


def client(wire: Wire, **kwargs: Any) -> myllm.Client:
    return myllm.Client(f"http://127.0.0.1:{wire.port}", **{"dialect": "vllm", **kwargs})


def ask(wire: Wire, request: lm15.Request) -> Any:
    """Send a typed request and return the body that arrived."""
    vllm(wire)(request)
    return wire.bodies[-1]


class TestParameters:
    def test_defaults_and_call_reach_the_wire(self, wire: Wire) -> None:
        lm = vllm(wire, temperature=0.5, max_tokens=40, top_k=20, min_p=0.05, stop="END", seed=3,
                  extra_body={"priority": 1})  # fmt: skip
        with dspy.context(lm=lm):
            dspy.ChainOfThought("question -> answer")(
                question="q", config={"min_p": 0.1, "repetition_penalty": 1.2}
            )
        (body,) = wire.bodies
        messages = body.pop("messages")
        assert [m["role"] for m in messages] == ["system", "user"]
        assert wire.paths == ["/v1/chat/completions"]
        assert body == {"model": "m", "temperature": 0.5, "max_tokens": 40, "top_k": 20, "min_p": 0.1,
                        "stop": ["END"], "seed": 3, "repetition_penalty": 1.2, "priority": 1}  # fmt: skip

    def test_nothing_is_sent_that_was_not_asked_for(self, wire: Wire) -> None:
        vllm(wire)("hello")
        assert wire.bodies == [{"model": "m", "messages": [{"role": "user", "content": "hello"}]}]

    def test_none_removes_a_default(self, wire: Wire) -> None:
        vllm(wire, min_p=0.1, temperature=0.3)("hello", min_p=None, temperature=None)
        assert set(wire.bodies[0]) == {"model", "messages"}

    def test_other_names_and_neutral_values(self, wire: Wire) -> None:
        vllm(wire)("hello", max_new_tokens=9, stop_sequences=["x"], top_k=-1, do_sample=False,
                   logit_bias={7: -100}, chat_template_kwargs={"enable_thinking": False})  # fmt: skip
        (body,) = wire.bodies
        assert {k: body[k] for k in body if k not in ("model", "messages")} == {
            "max_tokens": 9, "stop": ["x"], "top_k": -1, "temperature": 0.0, "logit_bias": {"7": -100.0},
            "chat_template_kwargs": {"enable_thinking": False},
        }  # fmt: skip

    def test_unknown_names_are_refused_at_construction_copy_and_call(self, wire: Wire) -> None:
        with pytest.raises(myllm.UnknownParameterError, match="Did you mean `temperature`"):
            vllm(wire, temprature=0.3)
        lm = vllm(wire)
        with pytest.raises(myllm.UnknownParameterError, match="Did you mean `min_p`"):
            lm.copy(min_pp=0.3)
        with pytest.raises(myllm.UnknownParameterError, match="Did you mean `repetition_penalty`"):
            lm("hello", repetition_penalties=1.1)
        with dspy.context(lm=lm), pytest.raises(myllm.UnknownParameterError, match="Did you mean `top_k`"):
            dspy.Predict("question -> answer", top_kk=3)(question="q")
        assert wire.bodies == []

    def test_values_out_of_range_and_misplaced_settings_are_refused(self, wire: Wire) -> None:
        with pytest.raises(myllm.InvalidParameterError, match="min_p"):
            vllm(wire, min_p=3)
        with pytest.raises(myllm.InvalidParameterError, match="constructor"):
            vllm(wire)("hello", timeout=3)
        with pytest.raises(myllm.InvalidParameterError, match="extra_body"):
            vllm(wire)("hello", extra_body=3)
        assert wire.bodies == []

    def test_a_typed_request_takes_extensions(self, wire: Wire) -> None:
        config = lm15.Config(top_k=5, extensions={"repetition_penalty": 1.2, "extra_body": {"x": 1}})
        body = ask(wire, lm15.Request("m", (lm15.Message.user("hello"),), config=config))
        assert (body["top_k"], body["repetition_penalty"], body["x"]) == (5, 1.2, 1)
        wrong = lm15.Config(extensions={"repetition_penaltyy": 1.2})
        with pytest.raises(LMInvalidRequestError, match="Did you mean `repetition_penalty`"):
            vllm(wire)(lm15.Request("m", (lm15.Message.user("hello"),), config=wrong))

    def test_logprobs(self, wire: Wire) -> None:
        entry = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
        body = chat("a")
        body["choices"][0]["logprobs"] = {"content": [entry]}
        wire.handler = lambda _: (200, body, {})
        (output,) = vllm(wire)("hello", logprobs=2)
        assert (wire.bodies[0]["logprobs"], wire.bodies[0]["top_logprobs"]) == (True, 2)
        assert output["text"] == "a"
        assert output["logprobs"].content[0].logprob == -0.5

    def test_authorization_headers_and_request_id(self, wire: Wire) -> None:
        vllm(wire, api_key="secret", headers={"X-Team": "a"})("hello")
        assert wire.headers[0]["authorization"] == "Bearer secret"
        assert wire.headers[0]["x-team"] == "a"
        assert len(wire.headers[0]["x-request-id"]) >= 16


class TestManyAnswers:
    def test_n_is_one_request(self, wire: Wire) -> None:
        wire.says(*(FIELDS.format(city) for city in ("Paris", "Rome", "Oslo")))
        lm = vllm(wire)
        with dspy.context(lm=lm, track_usage=True):
            prediction = dspy.Predict("question -> answer", n=3)(question="q")
        assert prediction.completions.answer == ["Paris", "Rome", "Oslo"]
        assert [body["n"] for body in wire.bodies] == [3]
        assert lm.history[-1]["usage"]["completion_tokens"] == 5
        assert prediction.get_lm_usage()["m"]["completion_tokens"] == 5

    async def test_n_is_one_request_async(self, wire: Wire) -> None:
        wire.says("a", "b")
        assert await vllm(wire, n=2).acall("hello") == ["a", "b"]
        assert [body["n"] for body in wire.bodies] == [2]

    def test_a_server_that_answers_fewer_is_asked_again(self, wire: Wire) -> None:
        wire.says("a")
        assert vllm(wire)("hello", n=2) == ["a", "a"]
        assert [body.get("n") for body in wire.bodies] == [2, None]

    def test_a_failed_attempt_is_retried_whole(self, wire: Wire) -> None:
        answers = [(503, {}, {"Retry-After": "0"}), (200, chat("a", "b"), {})]
        wire.handler = lambda body: answers.pop(0)
        assert vllm(wire)("hello", n=2) == ["a", "b"]
        assert [body["n"] for body in wire.bodies] == [2, 2]

    def test_a_typed_request_is_one_answer(self, wire: Wire) -> None:
        wire.says("a")
        response = vllm(wire, n=2)(lm15.Request("m", (lm15.Message.user("hello"),)))
        assert response.message.text == "a"
        assert "n" not in wire.bodies[0]

    def test_tgi_is_asked_n_times(self, wire: Wire) -> None:
        wire.says("a")
        lm = HFClientTGI("m", wire.port, "http://127.0.0.1")
        assert lm("hello", n=2, temperature=1.0, seed=7) == ["a", "a"]
        assert wire.paths == ["/v1/chat/completions"] * 2
        assert all("n" not in body for body in wire.bodies)
        assert [body["seed"] for body in wire.bodies] == [7, 8]  # else both would be the same answer

    def test_n_is_of_its_own_call_only(self, wire: Wire) -> None:
        """A callback that calls the same LM gets answers of its own."""

        class Asks(dspy.utils.callback.BaseCallback):
            inner: Any = None

            def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
                if self.inner is None:
                    self.inner = ()
                    self.inner = instance("inner", cache=False)

        wire.handler = lambda body: (200, chat(*[body["messages"][0]["content"]] * body.get("n", 1)), {})
        callback = Asks()
        assert vllm(wire, callbacks=[callback])("outer", n=2) == ["outer", "outer"]
        assert callback.inner == ["inner"]

    def test_a_typed_request_for_several_is_answered(self, wire: Wire) -> None:
        """TGI's chat is asked n times, and there is no one body that was the server's."""
        body = chat(FIELDS, message={"reasoning": "hm"})
        wire.handler = lambda _: (200, body, {})
        config = lm15.Config(extensions={"n": 2})
        request = lm15.Request("m", (lm15.Message.user("hello"),), config=config)
        response = HFClientTGI("m", wire.port, "http://127.0.0.1").engine.complete(request)
        assert [part.text for part in response.message.parts] == ["hm", FIELDS]
        assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 10)
        assert len(wire.bodies) == 2


class TestGenerate:
    """The old clients' call."""

    def test_a_calls_other_name_goes_before_the_lms(self, wire: Wire) -> None:
        lm = vllm(wire, max_tokens=5, temperature=0.7, min_p=0.1, extra_body={"x": 1})
        lm._generate("hello", max_new_tokens=7, do_sample=False)
        vllm(wire, max_new_tokens=5)._generate("hello", max_tokens=None, system_prompt="hm")
        first, second = wire.bodies
        assert (first["max_tokens"], first["temperature"], first["min_p"], first["x"]) == (7, 0, 0.1, 1)
        assert "max_tokens" not in second
        assert second["messages"][0] == {"role": "system", "content": "hm"}

    def test_tgi_is_asked_at_its_chat_unless_only_generate_will_do(self, wire: Wire) -> None:
        lm = HFClientTGI("m", wire.port, "http://127.0.0.1")
        lm._generate("hello")
        wire.handler = lambda body: (200, {"generated_text": "a", "details": {}}, {})
        lm._generate("hello", typical_p=0.5)
        lm.copy(model_type="text")._generate("hello")
        assert wire.paths == ["/v1/chat/completions", "/generate", "/generate"]

    def test_copy_changes_how(self, wire: Wire) -> None:
        lm = vllm(wire)
        twin = lm.copy(model_type="chat", system_prompt="hm", temperature=0.5)
        assert twin.client is lm.client
        twin._generate("hello")
        lm._generate("hello")
        assert [len(body["messages"]) for body in wire.bodies] == [2, 1]
        wire.handler = lambda body: (200, {"choices": [{"index": 0, "text": "a"}]}, {})
        lm.copy(model_type="text")._generate("hello")
        assert wire.paths[-1] == "/v1/completions"
        with pytest.raises(myllm.InvalidParameterError, match="model_type='completion'"):
            lm.copy(model_type="completion")
        with pytest.raises(myllm.UnknownParameterError, match="model_type"):
            LM(client(wire), "m").copy(model_type="text")


class TestMessages:
    def test_parts(self, wire: Wire) -> None:
        request = lm15.Request(
            "m",
            (
                lm15.Message.user(
                    (
                        lm15.TextPart("look"),
                        lm15.ImagePart(url="http://x/y.png", detail="low"),
                        lm15.ImagePart(media_type="image/png", data="aGk="),
                        lm15.AudioPart(media_type="audio/wav", data="aGk="),
                        lm15.VideoPart(url="http://x/y.mp4"),
                    )
                ),
                lm15.Message(
                    "assistant",
                    (
                        lm15.ThinkingPart("hm"),
                        lm15.TextPart("well"),
                        lm15.ToolCallPart("c1", "add", {"a": 1}),
                    ),
                ),
                lm15.Message("tool", (lm15.ToolResultPart("c1", (lm15.TextPart("2"),), is_error=True),)),
                lm15.Message("developer", (lm15.TextPart("be brief"),)),
            ),
            system="be kind",
        )
        assert ask(wire, request)["messages"] == [
            {"role": "system", "content": "be kind"},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "look"},
                    {"type": "image_url", "image_url": {"url": "http://x/y.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                    {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
                    {"type": "video_url", "video_url": {"url": "http://x/y.mp4"}},
                ],
            },
            {
                "role": "assistant",
                "content": "well",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "[error] 2"},
            {"role": "system", "content": "be brief"},
        ]

    def test_the_body_agrees_with_the_frameworks_own_reader(self, wire: Wire) -> None:
        """What we write, DSPy's reader of chat bodies reads back as the request it was."""
        tool = lm15.FunctionTool("add", "Add.", {"type": "object", "properties": {"a": {"type": "integer"}}})
        request = lm15.Request(
            "m",
            (lm15.Message.user("hello"), lm15.Message.assistant("hi"), lm15.Message.user("add")),
            system="be kind",
            tools=(tool,),
            config=lm15.Config(
                max_tokens=5, temperature=0.5, top_p=0.9, stop=("x",), seed=1, frequency_penalty=0.1,
                presence_penalty=0.2, logprobs=2, user_id="u", reasoning=lm15.Reasoning("low"),
                tool_choice=lm15.ToolChoice("required", ("add",), parallel=False),
                response_format={"type": "json_schema", "schema": {"type": "object"}, "strict": True},
            ),
        )  # fmt: skip
        assert lm15.request_from_openai_chat(ask(wire, request)) == request

    def test_allowed_tools_are_the_ones_sent(self, wire: Wire) -> None:
        tools = tuple(lm15.FunctionTool(name) for name in ("a", "b", "c"))
        config = lm15.Config(tool_choice=lm15.ToolChoice("auto", ("a", "b")))
        body = ask(wire, lm15.Request("m", (lm15.Message.user("hello"),), tools=tools, config=config))
        assert [tool["function"]["name"] for tool in body["tools"]] == ["a", "b"]
        assert body["tool_choice"] == "auto"

    @pytest.mark.parametrize(
        ("change", "feature"),
        [
            ({"config": lm15.Config(store=True)}, "config.store"),
            ({"config": lm15.Config(service_tier="flex")}, "config.service_tier"),
            ({"config": lm15.Config(cache=lm15.CacheConfig())}, "config.cache"),
            ({"config": lm15.Config(probabilities="required")}, "config.probabilities"),
            ({"config": lm15.Config(reasoning=lm15.Reasoning("low", thinking_budget=9))}, "thinking_budget"),
            ({"tools": (lm15.BuiltinTool("web_search"),)}, "web_search"),
            ({"messages": (lm15.Message.user((lm15.DocumentPart(data="aGk="),)),)}, "messages"),
            ({"messages": (lm15.Message.user((lm15.ImagePart(file_id="f"),)),)}, "messages"),
        ],
    )
    def test_what_the_wire_cannot_say_is_refused(
        self, wire: Wire, change: dict[str, Any], feature: str
    ) -> None:
        request = lm15.Request(**{"model": "m", "messages": (lm15.Message.user("hello"),), **change})
        with pytest.raises(LMUnsupportedFeatureError) as caught:
            vllm(wire)(request)
        assert feature in str(caught.value.feature)
        assert wire.bodies == []

    def test_a_dropped_hint_is_on_the_response(self, wire: Wire) -> None:
        config = lm15.Config(probabilities="if_available")
        response = vllm(wire)(lm15.Request("m", (lm15.Message.user("hello"),), config=config))
        assert [a.field for a in response.adaptations] == ["config.probabilities"]


class TestAnswers:
    def test_reasoning_and_tool_calls(self, wire: Wire) -> None:
        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        message = {"reasoning": "hm", "tool_calls": [call]}
        wire.handler = lambda body: (200, chat(None, message=message, finish="tool_calls"), {})
        response = vllm(wire)(lm15.Request("m", (lm15.Message.user("hello"),)))
        assert response.finish_reason == "tool_call"
        assert [(c.id, c.name, c.input) for c in response.tool_calls] == [("c1", "add", {"a": 1})]
        assert response.message.parts[0].text == "hm"
        assert response.usage.input_tokens == 7

    def test_abilities_are_what_is_stated(self, wire: Wire) -> None:
        plain = vllm(wire)
        assert not plain.supports_function_calling
        assert plain.supports_response_schema
        assert "response_format" in plain.supported_params
        unable = vllm(wire, supports=lm15.ModelSupport(response_schema=False))
        assert "response_format" not in unable.supported_params
        able = vllm(wire, supports=lm15.ModelSupport(function_calling=True, response_schema=True))
        assert able.supports_function_calling
        assert {"response_format", "tools"} <= able.supported_params

    def test_structured_outputs_are_asked_for(self, wire: Wire) -> None:
        wire.says('{"answer": 4}')
        with dspy.context(lm=vllm(wire), adapter=dspy.JSONAdapter()):
            assert dspy.Predict("question -> answer: int")(question="2+2").answer == 4
        assert wire.bodies[0]["response_format"]["type"] == "json_schema"
        assert wire.bodies[0]["response_format"]["json_schema"]["strict"] is True

    def test_native_tools_where_stated(self, wire: Wire) -> None:
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
        wire.handler = lambda _: (200, chat(None, message={"tool_calls": [call]}, finish="tool_calls"), {})

        class Use(dspy.Signature):
            question: str = dspy.InputField()
            tools: list[dspy.Tool] = dspy.InputField()
            calls: dspy.ToolCalls = dspy.OutputField()

        lm = vllm(wire, supports={"function_calling": True})
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
            calls = dspy.Predict(Use)(question="1+2", tools=[dspy.Tool(add)]).calls
        assert [(c.name, c.args) for c in calls.tool_calls] == [("add", {"a": 1, "b": 2})]
        assert wire.bodies[0]["tools"][0]["function"]["name"] == "add"

    def test_generate_is_the_old_call(self, wire: Wire) -> None:
        answer = {
            "id": "1",
            "model": "m",
            "choices": [{"index": 0, "text": " Paris", "finish_reason": "stop"}],
        }
        wire.handler = lambda body: (200, answer, {})
        lm = vllm(wire, max_tokens=9, min_p=0.1, model_type="text")
        assert lm._generate("The capital is", top_k=3)["choices"][0]["text"] == " Paris"
        assert wire.paths == ["/v1/completions"]
        assert wire.bodies[0]["prompt"] == "The capital is"
        assert (wire.bodies[0]["max_tokens"], wire.bodies[0]["top_k"], wire.bodies[0]["min_p"]) == (9, 3, 0.1)
        assert wire.bodies[0]["temperature"] == 0.0
        lm.copy(model="other", temperature=0.5)._generate("x")
        assert (wire.bodies[1]["model"], wire.bodies[1]["temperature"]) == ("other", 0.5)
        assert isinstance(lm.client, myllm.Client)

    def test_tgi_generates_over_its_own_endpoint(self, wire: Wire) -> None:
        wire.handler = lambda body: (200, {"generated_text": " Paris"}, {})
        lm = HFClientTGI("m", wire.port, "http://127.0.0.1", {"timeout": 9}, max_tokens=5, model_type="text")
        assert lm._generate("The capital is")["choices"][0]["text"] == " Paris"
        assert wire.paths == ["/generate"]
        assert wire.bodies[0]["parameters"]["max_new_tokens"] == 5


class TestStreams:
    async def test_deltas_tools_usage(self, wire: Wire) -> None:
        fragments = [{"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}}]
        wire.streams(
            chunk({"role": "assistant", "content": ""}),
            chunk({"reasoning_content": "hm"}),
            chunk({"content": "Hi"}, logprobs={"content": [{"token": "Hi", "logprob": -0.25}]}),
            chunk({"tool_calls": fragments}),
            chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}),
            chunk({}, finish="tool_calls"),
            chunk(None),
        )
        lm = vllm(wire)
        events = list(lm.engine.stream(lm15.Request("m", (lm15.Message.user("hello"),))))
        assert [event.type for event in events] == ["start", "delta", "delta", "delta", "delta", "end"]
        response = lm15.materialize_response(
            iter(events), lm15.Request("m", (lm15.Message.user("hello"),), config=lm15.Config(logprobs=0))
        )
        assert response.id == "chatcmpl-2"
        assert [part.type for part in response.message.parts] == ["thinking", "text", "tool_call"]
        assert response.tool_calls[0].input == {"a": 1}
        assert response.finish_reason == "tool_call"
        assert response.usage.output_tokens == 5
        assert response.logprobs is not None
        assert response.logprobs[0].logprob == -0.25
        assert wire.bodies[0]["stream_options"] == {"include_usage": True}

    @pytest.mark.parametrize("asynchronous", [False, True])
    async def test_a_broken_stream_is_a_transport_error(self, wire: Wire, asynchronous: bool) -> None:
        wire.streams(chunk({"content": "[[ ## answer ## ]]\nPa"}), broken=True)
        predict = dspy.Predict("question -> answer")
        program = dspy.streamify(predict, is_async_program=asynchronous)
        with dspy.context(lm=vllm(wire)), pytest.raises(LMTransportError, match="broke off"):
            async for _ in program(question="q"):
                pass
        assert len(wire.bodies) == 1  # what was shown is not taken back by asking again


class TestErrors:
    @pytest.mark.parametrize(
        ("status", "message", "expected"),
        [
            (400, "bad", LMInvalidRequestError),
            (400, "This model's maximum context length is 8 tokens.", ContextWindowExceededError),
            (401, "no key", LMAuthError),
            (402, "pay", LMBillingError),
            (403, "not you", LMAuthError),
            (404, "The model `m` does not exist.", LMUnsupportedModelError),
            (404, "Not Found", LMInvalidRequestError),
            (408, "slow", LMTimeoutError),
            (422, "no", LMInvalidRequestError),
            (429, "wait", LMRateLimitError),
            (500, "oops", LMServerError),
            (503, "full", LMServerError),
            (504, "slow", LMTimeoutError),
        ],
    )
    async def test_statuses(self, wire: Wire, status: int, message: str, expected: type[Exception]) -> None:
        body = {"error": {"message": message, "type": "some_type", "code": None}}
        wire.handler = lambda _: (status, body, {"X-Request-Id": "r1", "Retry-After": "3"})
        lm = vllm(wire, num_retries=0)
        for call in (lambda: lm("hello"), lambda: asyncio.run(lm.acall("hello"))):
            with pytest.raises(dspy.LMError) as caught:
                await asyncio.to_thread(call)
            error = caught.value
            assert type(error) is expected
            assert (error.status, error.request_id, error.retry_after) == (status, "r1", 3.0)
            assert (error.provider, error.provider_code) == ("vllm", "some_type")
            assert message in str(error)
            assert isinstance(error.__cause__.__cause__, myllm.APIStatusError)
        assert len(wire.bodies) == 2

    def test_the_advice_names_our_settings(self, wire: Wire) -> None:
        wire.handler = lambda _: (401, {"error": {"message": "no key"}}, {})
        with pytest.raises(LMAuthError, match="MYLLM_API_KEY"):
            vllm(wire, num_retries=0)("hello")

    def test_dspy_retries_and_waits_as_told(self, wire: Wire) -> None:
        answers = [(429, {}, {"Retry-After": "0.01"})] * 2 + [(200, chat("a"), {})]
        wire.handler = lambda _: answers.pop(0)
        assert vllm(wire)("hello") == ["a"]
        assert len(wire.bodies) == 3

    def test_nobody_home(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            lm = HFClientVLLM("m", sock.getsockname()[1], num_retries=0)
            with pytest.raises(LMTransportError, match="myllm serve"):
                lm("hello")

    def test_silence(self, wire: Wire) -> None:
        done = threading.Event()
        wire.handler = lambda _: (done.wait(5), (200, chat("late"), {}))[1]
        with pytest.raises(LMTimeoutError):
            vllm(wire, num_retries=0, timeout=0.2)("hello")
        done.set()

    def test_no_answer_of_this_api(self, wire: Wire) -> None:
        wire.handler = lambda _: (200, b"<html>", {})
        with pytest.raises(LMProviderError, match="not JSON"):
            vllm(wire, num_retries=0)("hello")

    def test_arguments_of_the_other_class_are_refused(self, wire: Wire) -> None:
        for name, value in (("http", myllm.HTTPOptions()), ("endpoints", []), ("dialect", "tgi")):
            with pytest.raises(
                myllm.InvalidParameterError, match=f"`{name}` is an argument of `myllm.Client`"
            ):
                vllm(wire, **{name: value})
        for name in ("http_request_kwargs", "timeout", "api_key"):
            with pytest.raises(myllm.InvalidParameterError, match=f"`{name}` .* constructor of the client"):
                LM(client(wire), "m", **{name: None})
        with pytest.raises(myllm.InvalidParameterError, match=r"must be a `myllm.Client`"):
            LM("m", f"http://127.0.0.1:{wire.port}")

    def test_what_the_dialect_cannot_do(self, wire: Wire) -> None:
        lm = HFClientTGI("m", wire.port, "http://127.0.0.1", min_p=0.5, num_retries=0)
        with pytest.raises(LMUnsupportedFeatureError, match="min_p"):
            lm("hello")
        assert wire.bodies == []

    def test_a_closed_client(self, wire: Wire) -> None:
        lm = vllm(wire, num_retries=0)
        lm.close()
        with pytest.raises(dspy.LMError, match="closed"):
            lm("hello")

    def test_a_dead_server_of_several_is_passed_over(self, wire: Wire) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            lm = HFClientVLLM("m", [sock.getsockname()[1], wire.port], "http://127.0.0.1", num_retries=0)
            wire.says("a")
            assert [lm(f"hello {i}") for i in range(4)] == [["a"]] * 4


class TestCache:
    def test_memory_disk_and_rollouts(self, wire: Wire, tmp_path: Path) -> None:
        dspy.configure_cache(disk_cache_dir=str(tmp_path))
        lm = vllm(wire, temperature=1.0, min_p=0.1)
        lm("hello")
        lm("hello")
        assert len(wire.bodies) == 1
        assert lm.history[-1]["usage"] == {}
        lm("hello", rollout_id=1)
        lm("hello", min_p=0.2)
        lm("hello", cache=False)
        assert len(wire.bodies) == 4
        assert "rollout_id" not in wire.bodies[1]
        dspy.configure_cache(disk_cache_dir=str(tmp_path))  # a new memory, the same disk
        lm("hello")
        assert len(wire.bodies) == 4

    def test_the_same_request_in_other_words_is_the_same(self, wire: Wire) -> None:
        vllm(wire, min_p=0.1)("hello", max_new_tokens=5)
        vllm(wire)("hello", min_p=0.1, max_tokens=5)
        vllm(wire, top_p=None, min_p=0.3)("hello", min_p=0.1, max_tokens=5, top_k=None)
        assert len(wire.bodies) == 1

    def test_n_answers_come_back_from_the_cache(self, wire: Wire) -> None:
        wire.says("a", "b")
        assert [vllm(wire)("hello", n=2) for _ in range(2)] == [["a", "b"]] * 2
        assert len(wire.bodies) == 1


class TestObjects:
    def test_copy_shares_connections_and_keeps_parameters(self, wire: Wire) -> None:
        lm = vllm(wire, min_p=0.1, top_k=4, temperature=0.2)
        twin = lm.copy(temperature=0.9, top_k=None, repetition_penalty=1.1, rollout_id=7, num_retries=1)
        assert twin.client is lm.client
        assert (twin.num_retries, lm.num_retries) == (1, 3)
        twin("hello")
        lm("hello")
        sent = [
            {k: b.get(k) for k in ("min_p", "top_k", "temperature", "repetition_penalty")}
            for b in wire.bodies
        ]
        assert [tuple(s.values()) for s in sent] == [(0.1, None, 0.9, 1.1), (0.1, 4, 0.2, None)]

    def test_deepcopy_of_a_program(self, wire: Wire) -> None:
        program = dspy.ChainOfThought("question -> answer")
        program.set_lm(vllm(wire, min_p=0.1))
        assert program.deepcopy()(question="q").answer == "Paris"
        assert copy.deepcopy(program.get_lm()).client is program.get_lm().client

    def test_copies_keep_the_key(self, wire: Wire) -> None:
        lm = vllm(wire, api_key="k", headers={"X-Team": "a"}, model_type="text")
        for twin in (lm.copy(temperature=0.5), copy.copy(lm), copy.deepcopy(lm)):
            twin("hello", cache=False)
            twin._generate("hello")
            assert asyncio.run(twin.acall("hello", cache=False))
        assert [(h["authorization"], h["x-team"]) for h in wire.headers] == [("Bearer k", "a")] * 9

    def test_copy_takes_settings_and_parameters_only(self, wire: Wire) -> None:
        lm = vllm(wire)
        for name in ("close", "async_engine", "history", "kwargs", "_old", "clint"):
            with pytest.raises(myllm.UnknownParameterError, match=f"`{name}`"):
                lm.copy(**{name: None})
        for name, value in (("dialect", "tgi"), ("engine", None), ("client", None), ("cache_scope", "x")):
            with pytest.raises(myllm.InvalidParameterError, match=f"`{name}` .* constructor"):
                lm.copy(**{name: value})
        twin = lm.copy(model="other", cache=False, callbacks=[], num_retries=0)
        assert (twin.model, twin.cache, twin.num_retries) == ("other", False, 0)

    @pytest.mark.parametrize("library", [pickle, cloudpickle])
    @pytest.mark.parametrize("kind", ["vllm", "client", "engine"])
    def test_pickle_without_secrets(
        self, wire: Wire, monkeypatch: pytest.MonkeyPatch, library: Any, kind: str
    ) -> None:
        secret: dict[str, Any] = {"api_key": "S3CRET", "headers": {"X": "S3CRET"}}
        proxy = "http://user:S3CRET@127.0.0.1:1"
        if kind == "vllm":
            lm: Any = vllm(wire, min_p=0.1, http_request_kwargs={"proxies": {"http": proxy}}, **secret)
        else:
            of_client = client(wire, http=myllm.HTTPOptions(proxy=proxy), min_p=0.1, **secret)
            lm = LM(of_client, "m") if kind == "client" else dspy.LM("m", engine=Engine(of_client))
        data = library.dumps(lm)
        assert b"S3CRET" not in data
        monkeypatch.setenv("MYLLM_API_KEY", "again")
        twin = library.loads(data)
        assert type(twin) is type(lm)
        assert twin.dump_state() == lm.dump_state()
        twin("hello", cache=False)
        assert wire.bodies == [
            {"model": "m", "messages": [{"role": "user", "content": "hello"}], "min_p": 0.1}
        ]
        if kind != "engine":
            assert asyncio.run(twin.acall("hello", cache=False))
            assert twin.client.chat("hello", model="m").text
        if kind == "vllm":
            assert twin._generate("hello")
            assert twin.client is twin._old.client
        assert {h["authorization"] for h in wire.headers} == {"Bearer again"}
        assert not any("x" in h for h in wire.headers)

    def test_a_program_saved_whole_has_no_secrets(
        self, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = dspy.ChainOfThought("question -> answer")
        program.set_lm(vllm(wire, api_key="S3CRET", headers={"X": "S3CRET"}, min_p=0.1))
        program.save(tmp_path / "program", save_program=True)
        files = [path.read_bytes() for path in (tmp_path / "program").iterdir()]
        assert len(files) == 2
        assert not any(b"S3CRET" in data for data in files)
        monkeypatch.setenv("MYLLM_API_KEY", "again")
        loaded = dspy.load(str(tmp_path / "program"), allow_pickle=True)
        assert loaded(question="q").answer == "Paris"
        assert wire.headers[0]["authorization"] == "Bearer again"
        assert wire.bodies[0]["min_p"] == 0.1

    def test_worker_processes_take_the_key_from_the_environment(
        self, wire: Wire, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MYLLM_API_KEY", "k")
        wire.says("a")
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            assert pool.submit(vllm(wire), "hello").result() == ["a"]
        assert wire.headers[0]["authorization"] == "Bearer k"

    @pytest.mark.parametrize("library", [pickle, cloudpickle])
    def test_a_dialect_of_ones_own(self, wire: Wire, tmp_path: Path, library: Any) -> None:
        lm = LM(client(wire, dialect=OwnDialect()), "m", cache=False, num_retries=0)
        program = dspy.Predict("question -> answer")
        program.set_lm(library.loads(library.dumps(lm)))
        twin = program.get_lm()
        wire.says("a")
        assert twin("hello") == ["a"]
        assert asyncio.run(twin.acall("hello")) == ["a"]
        assert [body["own"] for body in wire.bodies] == [True, True]
        with pytest.raises(myllm.InvalidParameterError, match="OwnDialect.*JSON"):
            program.save(tmp_path / "program.json")
        wire.handler = lambda body: (400, {"error": {"message": "no", "code": "own_code"}}, {})
        with pytest.raises(LMInvalidRequestError, match="no") as caught:
            twin("hello")
        assert caught.value.provider_code == "own_code"

    @pytest.mark.parametrize("kind", ["vllm", "tgi", "client"])
    def test_save_and_load_without_secrets(
        self, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        connection: dict[str, Any] = {
            "api_key": "S3CRET", "headers": {"X": "S3CRET"}, "timeout": myllm.Timeout(first_byte=9)
        }  # fmt: skip
        kwargs: dict[str, Any] = {
            "temperature": 0.5, "cache_scope": "mine", "supports": {"function_calling": True}, "num_retries": 1, "cache": False, "max_tokens": 33,
        }  # fmt: skip
        if kind == "vllm":
            lm: Any = vllm(
                wire, model_type="chat", system_prompt="hm", min_p=0.1, max_retries=1, **connection, **kwargs
            )
        elif kind == "tgi":
            http = {"verify": "/ca.pem", "proxies": {"http": None}}
            lm = HFClientTGI("m", [wire.port, wire.port + 1], "127.0.0.1", http, **connection, **kwargs)
        else:
            # The client's parameters are the LM's, and what the LM takes back stays so.
            lm = LM(
                client(wire, dialect="openai", seed=7, top_p=0.9, **connection), "m", top_p=None, **kwargs
            )
        program = dspy.ChainOfThought("question -> answer")
        program.set_lm(lm)
        path = tmp_path / "program.json"
        program.save(path)
        assert "S3CRET" not in path.read_text()
        with pytest.raises(ValueError, match="allow_unsafe_lm_state"):
            dspy.ChainOfThought("question -> answer").load(path)
        monkeypatch.setenv("MYLLM_API_KEY", "again")
        loaded = dspy.ChainOfThought("question -> answer")
        loaded.load(path, allow_unsafe_lm_state=True)
        twin = loaded.get_lm()
        assert type(twin) is type(lm)
        assert twin.dump_state() == lm.dump_state()
        assert (twin.client.timeout, twin.client.max_retries) == (lm.client.timeout, lm.client.max_retries)
        assert twin.supports_function_calling
        assert loaded(question="q").answer == "Paris"
        assert wire.headers[-1]["authorization"] == "Bearer again"
        assert wire.bodies[-1]["max_tokens"] == 33
        assert wire.bodies[-1].get("min_p") == (0.1 if kind == "vllm" else None)
        assert wire.bodies[-1].get("seed") == (7 if kind == "client" else None)
        assert "top_p" not in wire.bodies[-1]
        assert twin.client.model == "m"

    def test_every_setting_of_the_connection_is_saved(self, wire: Wire, tmp_path: Path) -> None:
        settings: dict[str, Any] = {
            "policy": "affinity", "breaker": myllm.Breaker(failures=5), "health_interval": 60.0,
            "hedge_after": 2.0, "max_concurrency": 3, "requests_per_second": 9.0, "coalesce": True,
            "message_policy": "auto",
        }  # fmt: skip
        url = f"http://127.0.0.1:{wire.port}"
        heavy = [myllm.Endpoint(url, weight=2.0), myllm.Endpoint(f"{url}/other")]
        hooks = [myllm.hooks.Hook()]
        cache = myllm.Cache(tmp_path / "answers.sqlite3", ttl=60)
        cached = myllm.Client(endpoints=heavy, cache=cache, dialect="auto", hooks=hooks, **settings)
        for lm in (
            HFClientVLLM("m", wire.port, "http://127.0.0.1", hooks=hooks, **settings),
            LM(cached, "m"),
            Client("m", endpoints=heavy, hooks=hooks, **settings),
            dspy.LM("m", engine=Engine(cached)),
        ):
            saved = json.loads(json.dumps(lm.dump_state()))
            loaded = type(lm).load_state(saved, allow_custom_lm_class=True)
            for twin in (loaded, pickle.loads(pickle.dumps(lm))):
                assert twin.dump_state() == lm.dump_state()
                ours, theirs = twin.engine.client.__getstate__(), lm.engine.client.__getstate__()
                assert ours.pop("hooks") == ()
                assert theirs.pop("hooks") == tuple(hooks)
                ours["cache"], theirs["cache"] = (
                    one["cache"] and one["cache"].__getstate__() for one in (ours, theirs)
                )
                ours.pop("model"), theirs.pop("model")
                assert ours == {**theirs, "dialect": ours["dialect"]}
                assert twin.engine.client.dialect == lm.engine.client.dialect

    def test_a_policy_of_ones_own_is_not_json(self, wire: Wire) -> None:
        lm = vllm(wire, policy=LeastInFlight())
        with pytest.raises(myllm.InvalidParameterError, match="`policy`.*LeastInFlight.*JSON"):
            lm.dump_state()

    def test_an_engine_of_a_plain_lm(self, wire: Wire) -> None:
        lm = dspy.LM("m", engine=Engine(client(wire, min_p=0.1)))
        wire.says("a")
        assert lm("hello") == ["a"]
        assert wire.bodies[0]["min_p"] == 0.1
        state = lm.dump_state()
        assert state["engine"]["class"] == "myllm_adapters.dspy:Engine"
        twin = dspy.LM.load_state(state, allow_custom_lm_class=True)
        assert twin("hello", cache=False) == ["a"]
        assert wire.bodies[1]["min_p"] == 0.1

    def test_threads(self, wire: Wire) -> None:
        wire.handler = lambda body: (200, chat(*[body["messages"][0]["content"]] * body.get("n", 1)), {})
        lm = vllm(wire)
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda i: lm(f"hello {i}", n=1 + i % 3), range(96)))
        assert answers == [[f"hello {i}"] * (1 + i % 3) for i in range(96)]
        assert len(wire.bodies) == 96

    def test_several_event_loops(self, wire: Wire) -> None:
        wire.handler = lambda body: (200, chat(body["messages"][0]["content"]), {})
        lm = vllm(wire)

        async def many(word: str) -> list[Any]:
            return await asyncio.gather(*(lm.acall(f"{word} {i}") for i in range(8)))

        for word in ("one", "two"):
            assert asyncio.run(many(word)) == [[f"{word} {i}"] for i in range(8)]

    def test_an_optimizer(self, wire: Wire) -> None:
        examples = [dspy.Example(question=f"q{i}", answer="Paris").with_inputs("question") for i in range(3)]
        optimizer = dspy.BootstrapFewShot(
            metric=lambda example, prediction, trace=None: example.answer == prediction.answer,
            max_bootstrapped_demos=2,
            max_labeled_demos=0,
        )
        with dspy.context(lm=vllm(wire, min_p=0.1)):
            compiled = optimizer.compile(dspy.ChainOfThought("question -> answer"), trainset=examples)
        assert len(compiled.predictors()[0].demos) == 2
        assert all(body["min_p"] == 0.1 for body in wire.bodies)

    def test_parallel_programs(self, wire: Wire) -> None:
        program = dspy.ChainOfThought("question -> answer")
        examples = [dspy.Example(question=f"q{i}").with_inputs("question") for i in range(12)]
        with dspy.context(lm=vllm(wire, n=2)):
            predictions = dspy.Parallel(num_threads=6, disable_progress_bar=True)(
                [(program, example) for example in examples]
            )
        assert [p.answer for p in predictions] == ["Paris"] * 12

    def test_callbacks_once(self, wire: Wire) -> None:
        class Counts(dspy.utils.callback.BaseCallback):
            starts = 0

            def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
                self.starts += 1

        counts = Counts()
        vllm(wire, callbacks=[counts])("hello")
        assert counts.starts == 1
