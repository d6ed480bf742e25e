"""Large bodies, long texts and slow constraints: bounded, and no trouble to anybody else."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest

from myllm_engine.errors import QueueFullError
from myllm_engine.server.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SLOW = {"prompt": "x", "guided_regex": "a"}
LIMIT = 1000


def send(url: str, body: dict) -> socket.socket:
    """Send a completion request and return its connection."""
    content = json.dumps(body).encode()
    host, port = url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)))
    client.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return client


def test_slow_constraints_hold_up_nobody_else(scripted, said):
    begun, dropped = threading.Semaphore(0), threading.Semaphore(0)

    async def for_ever(request):
        begun.release()
        try:
            await asyncio.Event().wait()
        finally:
            dropped.release()

    with scripted([said(("ok", b"ok", "stop"))], compiler=for_ever) as live:
        connections = [send(live.url, SLOW) for _ in range(40)]
        assert all(begun.acquire(timeout=10) for _ in connections)
        started = time.monotonic()
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "x" * 30_000})):
            assert httpx.post(live.url + path, json=body).status_code == 200
        assert time.monotonic() - started < 2
        for connection in connections:
            connection.close()
        # Nobody waits any more for what these asked for.
        assert all(dropped.acquire(timeout=10) for _ in connections)


def test_too_many_slow_constraints_are_told_to_come_back(scripted):
    async def full(request):
        raise QueueFullError("30 constraints wait to be compiled already: try again later")

    with scripted(compiler=full) as live:
        reply = httpx.post(f"{live.url}/v1/completions", json=SLOW)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert "30 constraints wait" in reply.json()["error"]["message"]
        parameters = {"grammar": {"type": "regex", "value": "a"}}
        response = httpx.post(f"{live.url}/generate", json={"inputs": "x", "parameters": parameters})
        assert response.status_code == 429


@pytest.fixture(scope="module")
def small(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(max_body_size=LIMIT)) as live:
        yield live.url


def padded(body: dict, size: int) -> bytes:
    content = json.dumps(body).encode()
    return content + b" " * (size - len(content))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", CHAT), ("/generate", {"inputs": "x"})],
)
def test_a_body_beyond_the_limit_is_a_413(small, path, body, chunked):
    def post(size):
        content = padded(body, size)
        # An iterator is sent in chunks, without a Content-Length.
        content = iter([content[:600], content[600:]]) if chunked else content
        return httpx.post(small + path, content=content, headers={"content-type": "application/json"})

    assert post(LIMIT).status_code == 200
    response = post(LIMIT + 1)
    assert response.status_code == 413
    error = response.json()["error"]
    if path.startswith("/v1"):
        assert (error["code"], error["type"]) == (413, "RequestEntityTooLargeError")
        error = error["message"]
    else:
        assert response.json()["error_type"] == "validation"
    assert f"larger than {LIMIT} bytes" in error


def test_a_body_announced_too_large_is_not_waited_for(small):
    host, port = small.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 9000000000\r\n\r\n"
        )
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_many_texts_are_tokenized_aside(scripted, said, monkeypatch):
    threads = []
    with scripted([said(("ok", b"ok", "stop"))]) as live:
        encode = live.engine.tokenizer.encode

        def spy(*arguments, **options):
            threads.append(threading.current_thread().name)
            return encode(*arguments, **options)

        monkeypatch.setattr(live.engine.tokenizer, "encode", spy)
        for texts, aside in ((["word"] * 3, False), (["x" * 9_000] * 3, True)):
            threads.clear()
            response = httpx.post(f"{live.url}/v1/completions", json={"prompt": texts})
            assert [choice["text"] for choice in response.json()["choices"]] == ["ok"] * 3
            assert len(threads) == 3
            assert all(name.startswith("read-prompts") for name in threads) is aside


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": [[' + b"1.5," * 500_000 + b"1]]}",
        b'{"prompt": "x", "logit_bias": {' + b",".join(b'"x%d":1' % i for i in range(200_000)) + b"}}",
        b'{"prompt": "x", "stop": [' + b"1," * 500_000 + b"1]}",
    ],
)
def test_of_a_million_mistakes_the_first_is_told(scripted, content):
    with scripted([]) as live:
        started = time.monotonic()
        response = httpx.post(
            f"{live.url}/v1/completions", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert len(response.content) < 1000
        assert time.monotonic() - started < 1
