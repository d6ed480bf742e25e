"""What the LiteLLM provider sends, and how faults come out: LiteLLM against a server that says what it saw."""

from __future__ import annotations

import asyncio
import gc
import http.server
import json
import queue
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import litellm
import pytest
from litellm.integrations.custom_logger import CustomLogger

import myllm_adapters.litellm as adapter

M = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({**ANSWER, 'choices': [choice], 'usage': None, **more})}\n\n"


USAGE_EVENT = f"data: {json.dumps({**ANSWER, 'choices': []})}\n\n"
DONE = "data: [DONE]\n\n"


def test_parameters_reach_the_wire(wire: Any) -> None:
    wire.answers(ANSWER)
    litellm.completion(
        model="myllm/org/m", messages=M, api_base=f"{wire.url}/v1/", dialect="vllm", api_key="secret",
        temperature=1.5, max_completion_tokens=9, top_k=5, min_p=0.1, repetition_penalty=1.2, stop="x", seed=1,
        tools=[TOOL], tool_choice="auto", response_format={"type": "json_object"}, logit_bias={"5": -1},
        extra_body={"guided_regex": "a+"}, extra_headers={"X-Team": "blue"}, num_retries=0, max_retries=3,
    )  # fmt: skip
    (seen,) = wire.seen
    assert seen.path == "/v1/chat/completions"
    assert seen.body == {
        "model": "org/m", "messages": M, "temperature": 1.5, "max_tokens": 9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.2, "stop": ["x"], "seed": 1, "tools": [TOOL], "tool_choice": "auto",
        "response_format": {"type": "json_object"}, "logit_bias": {"5": -1.0}, "guided_regex": "a+",
    }  # fmt: skip
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["x-team"] == "blue"


def test_a_server_is_asked_once_what_it_is_and_gets_its_own_words(wire: Any) -> None:
    told = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}, "/version": {"version": "0.12.0"}}
    wire.handler = lambda seen, reply: reply.json(told.get(seen.path, ANSWER))
    for _ in range(2):
        litellm.completion(model="myllm/m", messages=M, api_base=wire.url, choice=["ok", "no"])
    assert [seen.path for seen in wire.seen] == [*told, *["/v1/chat/completions"] * 2]
    assert wire.bodies[2] == {"model": "m", "messages": M, "structured_outputs": {"choice": ["ok", "no"]}}
    with pytest.raises(litellm.APIResponseValidationError, match="ok"):
        litellm.completion(model="myllm/m", messages=M, api_base=wire.url, choice=["yes", "no"])


def test_address_and_key_from_the_environment(wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answers(ANSWER)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-service")
    monkeypatch.setenv("MYLLM_BASE_URL", wire.url)
    litellm.completion(model="myllm/m", messages=M, dialect="vllm")
    monkeypatch.setenv("MYLLM_API_KEY", "mine")
    litellm.completion(model="myllm/m", messages=M, dialect="vllm")
    assert [s.headers.get("authorization") for s in wire.seen] == [None, "Bearer mine"]


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_parameter_is_refused_with_the_nearest(wire: Any, stream: bool) -> None:
    with pytest.raises(litellm.BadRequestError, match="Did you mean `repetition_penalty`"):
        litellm.completion(
            model="myllm/m",
            messages=M,
            api_base=wire.url,
            dialect="vllm",
            repitition_penalty=1.1,
            stream=stream,
        )
    with pytest.raises(litellm.UnsupportedParamsError, match="typical_p"):
        litellm.completion(
            model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", typical_p=0.5, stream=stream
        )
    assert wire.seen == []


@pytest.mark.parametrize(
    ("status", "body", "error", "match"),
    [
        (400, {"error": {"message": "no such thing"}}, litellm.BadRequestError, "no such thing"),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8 tokens."}},
            litellm.ContextWindowExceededError,
            "Shorten the prompt",
        ),
        (401, {"error": {"message": "bad key"}}, litellm.AuthenticationError, "MYLLM_API_KEY"),
        (403, {"error": {"message": "not you"}}, litellm.PermissionDeniedError, "not you"),
        (404, {"error": {"message": "The model `m` does not exist"}}, litellm.NotFoundError, "models()"),
        (422, {"error": "bad", "error_type": "validation"}, litellm.UnprocessableEntityError, "bad"),
        (429, {"error": {"message": "slow down"}}, litellm.RateLimitError, "slow down"),
        (500, {"error": {"message": "boom"}}, litellm.InternalServerError, "boom"),
        (503, {"error": {"message": "loading"}}, litellm.ServiceUnavailableError, "loading"),
        (418, {"error": {"message": "teapot"}}, litellm.APIError, "teapot"),
    ],
)
def test_statuses(wire: Any, status: int, body: Any, error: type[Exception], match: str) -> None:
    wire.handler = lambda seen, reply: reply.json(body, status, {"Retry-After": "7"})
    for stream in (False, True):
        with pytest.raises(error, match=match) as caught:
            litellm.completion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", stream=stream)
        assert caught.type is error
        assert wire.url in str(caught.value)
    assert len(wire.seen) == 2  # one try each: retries are LiteLLM's
    if status == 429:
        assert caught.value.response.headers["retry-after"] == "7"  # what a Router waits for


def test_num_retries_are_litellms(wire: Any) -> None:
    answers = [(503, {"error": {"message": "loading"}}), (200, ANSWER)]

    def handler(seen: Any, reply: Any) -> None:
        status, body = answers.pop(0)
        reply.json(body, status)

    wire.handler = handler
    response = litellm.completion(
        model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", num_retries=1
    )
    assert response.choices[0].message.content == "ok"


async def test_statuses_of_async_calls(wire: Any) -> None:
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "bad key"}}, 401)
    with pytest.raises(litellm.AuthenticationError, match="bad key"):
        await litellm.acompletion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm")
    with pytest.raises(litellm.AuthenticationError, match="bad key"):
        async for _ in await litellm.acompletion(
            model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", stream=True
        ):
            pass


def test_no_server(free_port: int) -> None:
    url = f"http://127.0.0.1:{free_port}"
    for stream in (False, True):
        start = time.monotonic()
        with pytest.raises(litellm.APIConnectionError, match=f"No server answers at {url}.*myllm serve"):
            litellm.completion(model="myllm/m", messages=M, api_base=url, stream=stream)
        assert time.monotonic() - start < 2


def test_timeout(wire: Any) -> None:
    wire.handler = lambda seen, reply: time.sleep(0.6)
    start = time.monotonic()
    with pytest.raises(litellm.Timeout, match=wire.url):
        litellm.completion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", timeout=0.2)
    assert time.monotonic() - start < 0.6


def test_not_an_llm_server(wire: Any) -> None:
    wire.handler = lambda seen, reply: reply.raw(b"<html>hello</html>")
    with pytest.raises(litellm.APIResponseValidationError, match="not JSON"):
        litellm.completion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm")


def test_tool_calls_and_reasoning(wire: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": None, "reasoning": "hm", "tool_calls": [call]}
    wire.answers({**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]})
    response = litellm.completion(
        model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", tools=[TOOL]
    )
    choice = response.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].model_dump() == call
    assert choice.message.reasoning_content == "hm"


def test_streamed_tool_calls(wire: Any) -> None:
    def part(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        name = more.pop("name", None)
        function = {"arguments": arguments, **({"name": name} if name else {})}
        return {"tool_calls": [{"index": index, "function": function, **more}]}

    wire.streams(
        event({"role": "assistant", "content": ""}),
        event(part(0, "", id="a", name="f", type="function")),
        event(part(0, '{"x":')),
        event(part(0, "1}")),
        event(part(1, "{}", id="b", name="g", type="function")),
        event({}, "tool_calls"),
        USAGE_EVENT,
        DONE,
    )
    chunks = list(
        litellm.completion(
            model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", stream=True, tools=[TOOL]
        )
    )
    rebuilt = litellm.stream_chunk_builder(chunks, messages=M)
    calls = rebuilt.choices[0].message.tool_calls
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
        ("a", "f", '{"x":1}'),
        ("b", "g", "{}"),
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert rebuilt.usage.completion_tokens == 4


def test_broken_stream(wire: Any) -> None:
    def handler(seen: Any, reply: Any) -> None:
        reply.start_stream()
        reply.piece(event({"content": "par"}))
        time.sleep(0.1)
        reply.hang_up()

    wire.handler = handler
    got = []
    with pytest.raises(litellm.ServiceUnavailableError, match="broke"):  # LiteLLM's MidStreamFallbackError
        for chunk in litellm.completion(
            model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", stream=True
        ):
            got.append(chunk.choices[0].delta.content)
    assert got == ["par"]


async def test_a_cancelled_call_closes_its_connection(wire: Any) -> None:
    arrived, closed = threading.Event(), threading.Event()

    def handler(seen: Any, reply: Any) -> None:
        arrived.set()
        reply.set_when_left(closed)

    wire.handler = handler
    call = asyncio.create_task(
        litellm.acompletion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm")
    )
    assert await asyncio.to_thread(arrived.wait, 5)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(closed.wait, 5)


@pytest.mark.parametrize("leave", ["close", "drop", "drop after a chunk"])
def test_a_stream_that_is_left_closes_its_connection(wire: Any, leave: str) -> None:
    closed = threading.Event()

    def handler(seen: Any, reply: Any) -> None:
        reply.start_stream()
        reply.piece(event({"content": "a"}))
        reply.set_when_left(closed)

    wire.handler = handler
    request: Any = {
        "model": "myllm/m",
        "messages": M,
        "api_base": wire.url,
        "dialect": "vllm",
        "stream": True,
    }
    if leave == "close":
        stream = litellm.completion(**request)
        chunks = stream.completion_stream
        chunks.close()
        assert list(chunks) == []
    else:
        stream = litellm.completion(**request)
        if leave == "drop after a chunk":
            next(stream)
        del stream
        gc.collect()
    assert closed.wait(5)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The URL of a server with a certificate of its own making, and that certificate's path."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}", str(certificate)
    server.shutdown()
    server.server_close()


async def test_certificates_of_call_environment_and_global(
    tls: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = tls

    async def trusted(**kwargs: Any) -> bool:
        """Whether both kinds of client reach the server, or neither does."""
        request: Any = {"model": "myllm/m", "messages": M, "api_base": url, **kwargs}
        found = set()
        for call in (asyncio.to_thread(litellm.completion, **request), litellm.acompletion(**request)):
            try:
                await call
            except litellm.APIConnectionError as exc:
                if "certificate" not in str(exc):
                    raise
                found.add(False)
            else:
                found.add(True)
        (one,) = found
        return one

    assert not await trusted()
    assert await trusted(ssl_verify=False)
    assert await trusted(ssl_verify=certificate)
    assert not await trusted()  # not the client of the call before
    monkeypatch.setattr(litellm, "ssl_verify", False)
    assert await trusted()
    assert not await trusted(ssl_verify=True)
    monkeypatch.setenv("SSL_VERIFY", "True")
    assert not await trusted()
    assert await trusted(ssl_verify=False)
    monkeypatch.setenv("SSL_VERIFY", "False")
    monkeypatch.setattr(litellm, "ssl_verify", True)
    assert await trusted()
    monkeypatch.setenv("SSL_VERIFY", "")
    assert not await trusted()
    with pytest.raises(litellm.BadRequestError, match="ssl_verify"):
        await trusted(ssl_verify=ssl.create_default_context())


def test_clients_are_reused(wire: Any) -> None:
    wire.answers(ANSWER)
    ports = set()
    original = wire.handler

    def handler(seen: Any, reply: Any) -> None:
        ports.add(reply._http.client_address[1])
        original(seen, reply)

    wire.handler = handler
    for _ in range(3):
        litellm.completion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm")
    assert len(ports) == 1
    litellm.completion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm", api_key="other")
    assert len(ports) == 2


def test_callbacks_see_calls_whole_and_streamed(wire: Any) -> None:
    seen: queue.Queue[tuple[Any, ...]] = queue.Queue()

    class Logger(CustomLogger):
        def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
            seen.put(("pre", kwargs["additional_args"]["api_base"]))

        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            usage = response_obj.usage.total_tokens
            seen.put((response_obj.choices[0].message.content, usage, kwargs["response_cost"]))

    request: Any = {"model": "myllm/m", "messages": M, "api_base": wire.url, "dialect": "vllm"}
    litellm.callbacks.append(logger := Logger())
    try:
        wire.answers(ANSWER)
        litellm.completion(**request)
        assert [seen.get(timeout=10) for _ in range(2)] == [("pre", wire.url), ("ok", 7, 0.0)]
        wire.streams(event({"content": "ok"}), event({}, "stop"), USAGE_EVENT, DONE)
        list(litellm.completion(**request, stream=True))
        assert [seen.get(timeout=10) for _ in range(2)] == [("pre", wire.url), ("ok", 7, 0.0)]
    finally:
        litellm.callbacks.remove(logger)


def test_several_event_loops(wire: Any) -> None:
    wire.answers(ANSWER)
    for _ in range(2):
        response = asyncio.run(
            litellm.acompletion(model="myllm/m", messages=M, api_base=wire.url, dialect="vllm")
        )
        assert response.choices[0].message.content == "ok"


def test_handler_for_the_proxy() -> None:
    assert isinstance(adapter.handler, litellm.CustomLLM)
