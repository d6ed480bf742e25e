"""The server's limits hold in every dialect."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from myllm_engine.errors import InvalidRequestError
from myllm_engine.server.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
GRAMMAR = {"inputs": "hi", "parameters": {"grammar": {"type": "regex", "value": "a"}}}


def words(response: httpx.Response) -> str:
    error = response.json()["error"]
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/generate", {"inputs": "x" * 21}, 422, "`inputs` must have less than 20 tokens. Given: 21"),
        (
            "/generate",
            {"inputs": "x", "parameters": {"truncate": 21}},
            422,
            "`truncate` must be strictly positive and less than 20. Given: 21",
        ),
        ("/v1/completions", {"prompt": "x" * 21}, 400, "has 21 tokens, and this server takes 20 at most"),
        ("/v1/completions", {"prompt": ["x", "x" * 21]}, 400, "(its --max-input-tokens)"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * 20}]},
            400,
            "has 27 tokens, and this server takes 20",
        ),
    ],
)
def test_prompts_are_as_short_as_the_server_says(scripted, said, path, body, status, says):
    settings = ServerSettings(max_input_tokens=20)
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code == status
        assert says in words(response)
        assert httpx.post(f"{live.url}/generate", json={"inputs": "x" * 20}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate", GRAMMAR, 422),
        ("/v1/completions", {"prompt": "hi", "guided_choice": ["a"]}, 400),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400),
    ],
)
def test_constraints_can_be_switched_off(scripted, said, path, body, status):
    settings = ServerSettings(disable_grammar_support=True)
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code == status
        assert words(response).endswith("grammar is not supported")
        assert live.engine.requests == []


def test_a_batch_has_as_many_prompts_as_the_server_says(scripted, said):
    settings = ServerSettings(max_client_batch_size=2)
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": ["a", "b", "c"]})
        assert response.status_code == 400
        assert words(response) == "Number of prompts exceeds the maximum allowed batch size of 2"
        response = httpx.post(f"{live.url}/vertex", json={"instances": [{"inputs": "a"}] * 3})
        assert response.status_code == 422
        assert "Number of prompts exceeds the maximum allowed batch size of 2" in words(response)
        assert httpx.post(f"{live.url}/v1/completions", json={"prompt": ["a", "b"]}).status_code == 200


def test_more_requests_at_once_are_told_to_come_back(scripted, said):
    begun, go_on = threading.Semaphore(0), threading.Event()

    async def wait(request):
        begun.release()
        await asyncio.to_thread(go_on.wait, 10)

    settings = ServerSettings(max_concurrent_requests=2)
    with (
        scripted([said(("ok", b"ok", "stop"))], settings, compiler=wait) as live,
        ThreadPoolExecutor() as pool,
    ):
        slow = [pool.submit(httpx.post, f"{live.url}/generate", json=GRAMMAR) for _ in range(2)]
        assert all(begun.acquire(timeout=10) for _ in slow)
        for path, body, status in (
            ("/generate", {"inputs": "hi"}, 429),
            ("/v1/completions", {"prompt": "hi"}, 503),
            ("/v1/chat/completions", {**CHAT, "stream": True}, 503),
        ):
            response = httpx.post(live.url + path, json=body)
            assert response.status_code == status
            assert response.headers["retry-after"] == "1"
        assert httpx.get(f"{live.url}/health").status_code == 200
        go_on.set()
        assert [request.result().status_code for request in slow] == [200, 200]
        assert httpx.post(f"{live.url}/generate", json={"inputs": "hi"}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_room_comes_back_however_a_request_ends(scripted, said, stream):
    ends = {"prepared": [InvalidRequestError("no")], "ended": [said(("ok", b"ok", "stop"))]}
    for script in ends.values():
        with scripted(script, ServerSettings(max_concurrent_requests=1)) as live:
            for _ in range(3):
                body = {"prompt": "hi", "stream": stream}
                response = httpx.post(f"{live.url}/v1/completions", json=body)
                assert response.status_code in (200, 400)


def test_a_reader_who_leaves_makes_room(scripted, said):
    settings = ServerSettings(max_concurrent_requests=1)
    endless = [said(("a", b"a", None))] * 100_000
    with scripted(endless, settings) as live:
        body = {"prompt": "hi", "stream": True}
        with httpx.stream("POST", f"{live.url}/v1/completions", json=body) as response:
            chunks = response.iter_raw()
            assert next(chunks)
            assert httpx.post(f"{live.url}/v1/completions", json=body).status_code == 503
        deadline = time.monotonic() + 5
        while True:
            with httpx.stream("POST", f"{live.url}/v1/completions", json=body) as response:
                if response.status_code == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("name", ["max_input_tokens", "max_concurrent_requests", "max_client_batch_size"])
def test_a_limit_that_lets_nothing_through_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be 1 or more; got 0"):
        ServerSettings(**{name: 0})
