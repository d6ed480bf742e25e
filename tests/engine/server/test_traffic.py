"""What lies around the routes: ids, counts, limits, the end, other origins, a proxy's prefix."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import openai
import pytest

from myllm_engine.errors import EngineDeadError, QueueFullError
from myllm_engine.server.http_settings import HttpSettings
from myllm_engine.server.settings import ServerSettings

HELD = {"prompt": "x", "guided_regex": "a"}  # with a `compiler` that waits
ORIGIN = {"Origin": "https://page.example"}


def with_http(**settings) -> ServerSettings:
    return ServerSettings(http=HttpSettings(**settings))


@contextmanager
def held(scripted, said, settings=None):
    """Serve an engine, and keep one request of it waiting meanwhile."""
    begun, release = threading.Event(), threading.Event()

    async def wait(request):
        begun.set()
        await asyncio.to_thread(release.wait, 30)

    with scripted([said(("ok", b"ok", "stop"))], settings, compiler=wait) as live:
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{live.url}/v1/completions", json=HELD))
        )
        asking.start()
        try:
            assert begun.wait(10)
            yield live
        finally:
            release.set()
            asking.join(10)
        assert answers[0].status_code == 200


def test_the_load_is_the_requests_under_way(scripted, said):
    with held(scripted, said) as live:
        assert httpx.get(f"{live.url}/load").json() == {"server_load": 1}
    with scripted([]) as live:
        assert httpx.get(f"{live.url}/load").json() == {"server_load": 0}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/completions", {"prompt": "x"}, 503), ("/generate", {"inputs": "x"}, 429)],
)
def test_more_requests_than_may_be_answered_at_once(scripted, said, path, body, status):
    with held(scripted, said, ServerSettings(max_concurrent_requests=1)) as live:
        answer = httpx.post(live.url + path, json=body)
        assert (answer.status_code, answer.headers["retry-after"]) == (status, "1")
        # What makes the engine do nothing is answered.
        assert httpx.get(f"{live.url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "shape"),
    [
        ("/v1/completions", HELD, lambda answer: answer["error"]["type"] == "TimeoutError"),
        (
            "/generate",
            {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "a"}}},
            lambda answer: answer["error_type"] == "timeout",
        ),
    ],
)
def test_a_request_has_its_time(scripted, path, body, shape):
    dropped = threading.Event()

    async def for_ever(request):
        try:
            await asyncio.Event().wait()
        finally:
            dropped.set()

    with scripted([], with_http(request_timeout=0.2), compiler=for_ever) as live:
        started = time.monotonic()
        answer = httpx.post(live.url + path, json=body)
        assert 0.2 <= time.monotonic() - started < 2
        assert answer.status_code == 504
        assert shape(answer.json())
        assert "--request-timeout" in answer.text
        assert dropped.wait(2)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_stops_half_way_is_ended_in_time(scripted, said, stream):
    with scripted([said(("a", b"a", None)), 60.0], with_http(request_timeout=0.2)) as live:
        answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": stream})
        if not stream:
            assert answer.status_code == 504
            return
        *_, error, done = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert json.loads(error)["error"]["type"] == "TimeoutError"
        assert done == "[DONE]"


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/completions", lambda answer: answer["error"]["type"] == "TimeoutError"),
        ("/generate", lambda answer: answer["error_type"] == "timeout"),
    ],
)
def test_a_body_that_is_long_in_coming_is_not_waited_for(scripted, path, shape):
    with scripted([], with_http(request_timeout=0.3)) as live:
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as client:
            client.sendall(
                f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                'Content-Length: 1000\r\n\r\n{"prompt"'.encode()
            )
            head, _, body = client.recv(4096).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 504")
        assert shape(json.loads(body))
        assert b"--request-timeout" in body
        assert httpx.get(f"{live.url}/load").json() == {"server_load": 0}


def test_a_request_that_keeps_its_time_is_left_alone(scripted, said):
    script = [said(("a", b"a", None)), 0.1, said(("b", b"b", "stop"))]
    with scripted(script, with_http(request_timeout=30)) as live:
        for stream in (False, True):
            assert (
                httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": stream}).status_code
                == 200
            )


def test_streams_in_which_nothing_happens_get_comments(scripted, said):
    script = [said(("a", b"a", None)), 0.35, said(("b", b"b", "stop"))]
    with scripted(script, with_http(sse_keep_alive_interval=0.1)) as live:
        body = {"prompt": "x", "stream": True}
        events = httpx.post(f"{live.url}/v1/completions", json=body).text.split("\n\n")
        assert 2 <= events.count(": keep-alive") <= 4
        assert events[-2:] == ["data: [DONE]", ""]
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="-")
        chunks = client.completions.create(model="default", prompt="x", stream=True)
        assert [chunk.choices[0].text for chunk in chunks] == ["a", "b"]


STREAMS = [
    ("/v1/completions", {"prompt": "x"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/responses", {"input": "x"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
    ("/generate_stream", {"inputs": "x"}),
    ("/", {"inputs": "x"}),
]


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_a_stream_whose_first_token_is_long_in_coming_gets_comments_too(scripted, said, path, body):
    body = body if path == "/generate_stream" else {**body, "stream": True}
    read = threading.Event()
    with scripted([said(("late", b"late", "stop"))], with_http(sse_keep_alive_interval=0.05)) as live:
        submit = live.engine.submit

        async def wait(request):  # for as long as the prompt is read
            assert await asyncio.to_thread(read.wait, 30)
            async for output in submit(request):
                yield output

        live.engine.submit = wait
        with httpx.stream("POST", live.url + path, json=body) as answer:
            assert answer.status_code == 200
            lines, early = answer.iter_lines(), []
            while early.count(": keep-alive") < 2:
                early.append(next(lines))
            read.set()
            rest = list(lines)
    assert not any("late" in line for line in early)
    assert any("late" in line for line in rest)


@pytest.mark.parametrize(("interval", "status"), [(0.0, 500), (0.05, 200)])
def test_a_failure_before_the_first_token_has_a_status_while_nothing_is_sent(scripted, interval, status):
    script = [0.8, EngineDeadError("The engine died of a test")]
    with scripted(script, with_http(sse_keep_alive_interval=interval)) as live:
        answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": True})
    assert answer.status_code == status
    assert "The engine died of a test" in answer.text
    assert answer.text.endswith("data: [DONE]\n\n") is (status == 200)


def test_a_full_queue_has_a_status_whatever_the_comments(scripted):
    settings = with_http(sse_keep_alive_interval=0.1)
    with scripted([QueueFullError("full")], settings) as live:
        answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "stream": True})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def watch(engine, ended):
    """Set `ended` when a request is over, whole or aborted."""
    submit = engine.submit

    async def watched(request):
        try:
            async for output in submit(request):
                yield output
        finally:
            ended.set()

    engine.submit = watched


def test_a_client_that_leaves_before_the_first_token_ends_it(scripted):
    ended = threading.Event()
    with scripted([60.0], with_http(sse_keep_alive_interval=0.05)) as live:
        watch(live.engine, ended)
        with httpx.stream(
            "POST", f"{live.url}/v1/completions", json={"prompt": "x", "stream": True}
        ) as answer:
            assert next(answer.iter_lines()) == ": keep-alive"
        assert ended.wait(5)


def test_a_client_that_leaves_an_idle_stream_ends_it(scripted, said):
    ended = threading.Event()
    with scripted([said(("a", b"a", None)), 60.0], with_http(sse_keep_alive_interval=0.05)) as live:
        watch(live.engine, ended)
        with httpx.stream(
            "POST", f"{live.url}/v1/completions", json={"prompt": "x", "stream": True}
        ) as answer:
            lines = answer.iter_lines()
            while next(lines) != ": keep-alive":
                pass
        assert ended.wait(5)


@pytest.mark.parametrize("given", ["mine-1", None, "with blank", "x" * 200])
def test_request_ids(scripted, said, given):
    headers = {} if given is None else {"X-Request-Id": given}
    with scripted([said(("ok", b"ok", "stop"))], with_http(enable_request_id_headers=True)) as live:
        for method, path, body in (
            ("POST", "/v1/completions", {"prompt": "x"}),
            ("GET", "/v1/models", None),
            ("GET", "/no", None),
        ):
            answer = httpx.request(method, live.url + path, json=body, headers=headers)
            seen = answer.headers["x-request-id"]
            assert (seen == given) is (given == "mine-1")
            assert len(seen) == (6 if given == "mine-1" else 32)
    with scripted([]) as live:
        assert "x-request-id" not in httpx.get(f"{live.url}/v1/models", headers=headers).headers


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_a_proxy_s_prefix_may_be_there_or_not(scripted, said, prefix):
    settings = ServerSettings(api_keys=("key",), http=HttpSettings(root_path="/llm"))
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        base = live.url + prefix
        assert httpx.get(f"{base}/health").status_code == 200
        assert httpx.get(f"{base}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer key"}
        assert httpx.get(f"{base}/v1/models", headers=headers).status_code == 200
        # In the dialect of the route, whatever stands in front of it.
        assert httpx.post(f"{base}/generate", json={"inputs": "x"}).json()["error_type"] == "unauthorized"
        assert httpx.post(f"{base}/generate", json={"inputs": "x"}, headers=headers).json() == {
            "generated_text": "ok"
        }
        # Where browsers find the API's description.
        assert "/llm/openapi.json" in httpx.get(f"{base}/docs").text
        assert httpx.get(f"{base}/openapi.json").json()["servers"] == [{"url": "/llm"}]
        assert httpx.get(f"{live.url}/llmx/health").status_code == 401


def test_pages_of_other_origins(scripted, said):
    settings = ServerSettings(
        api_keys=("key",),
        http=HttpSettings(allowed_origins=("https://page.example",), allowed_methods=("GET", "POST")),
    )
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        preflight = httpx.options(f"{live.url}/v1/completions", headers=ORIGIN | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://page.example"
        assert preflight.headers["access-control-allow-methods"] == "GET, POST"
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        other = httpx.options(
            f"{live.url}/v1/completions", headers={"Origin": "https://other.example"} | asked
        )
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers

        for headers, status in (({"Authorization": "Bearer key"}, 200), ({}, 401)):
            answer = httpx.post(f"{live.url}/v1/completions", json={"prompt": "x"}, headers=ORIGIN | headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == "https://page.example"


def test_no_page_of_another_origin_is_let_in_by_default(scripted):
    with scripted([]) as live:
        asked = {"Access-Control-Request-Method": "GET"}
        preflight = httpx.options(f"{live.url}/v1/models", headers=ORIGIN | asked)
        assert preflight.status_code == 405
        assert "access-control-allow-origin" not in httpx.get(f"{live.url}/v1/models", headers=ORIGIN).headers


def test_middleware_of_one_s_own(scripted, tmp_path, monkeypatch):
    (tmp_path / "own_middleware.py").write_text(
        """
class Stamp:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def stamped(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-stamp", b"class")]
            await send(message)
        await self.app(scope, receive, stamped)


async def sign(request, call_next):
    answer = await call_next(request)
    answer.headers["x-signed"] = answer.headers.get("x-stamp", "before")
    return answer
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ("own_middleware.sign", "own_middleware.Stamp")
    with scripted([], with_http(middleware=names)) as live:
        headers = httpx.get(f"{live.url}/v1/models").headers
        assert headers["x-stamp"] == headers["x-signed"] == "class"


def test_documentation_may_be_left_out(scripted):
    with scripted([], with_http(enable_docs=False)) as live:
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert httpx.get(live.url + path).status_code == 404
