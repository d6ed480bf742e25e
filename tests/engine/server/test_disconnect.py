"""A client that goes away takes its request with it."""

from __future__ import annotations

import json
import socket
import time

import pytest

ENDLESS = {"max_tokens": 2000, "ignore_eos": True}
CHAT = [{"role": "user", "content": "Write a very long story about the sea."}]
RESPONSE = {"input": "Hi", "max_output_tokens": 2000, "ignore_eos": True}
TGI = {"inputs": "Once upon", "parameters": {"max_new_tokens": 2000, "do_sample": True}}


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the engine still works"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "body", "sequences"),
    [
        ("/v1/completions", {"prompt": "Once upon", **ENDLESS, "stream": True}, 1),
        ("/v1/completions", {"prompt": "Once upon", **ENDLESS}, 1),
        ("/v1/completions", {"prompt": ["Once upon", "A time"], "n": 2, **ENDLESS, "stream": True}, 4),
        ("/v1/completions", {"prompt": ["Once upon", "A time"], "n": 2, **ENDLESS}, 4),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}], **ENDLESS, "stream": True},
            1,
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], **ENDLESS}, 1),
        ("/v1/chat/completions/batch", {"messages": [CHAT, CHAT], **ENDLESS}, 2),
        ("/v1/responses", {**RESPONSE, "stream": True}, 1),
        ("/v1/responses", RESPONSE, 1),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 2000, "stream": True}, 1),
        ("/v1/messages", {"messages": CHAT, "max_tokens": 2000}, 1),
        ("/generate_stream", TGI, 1),
        ("/generate", TGI, 1),
    ],
)
def test_a_closed_connection_frees_the_pages(live, path, body, sequences):
    engine = live.engine
    wait_for(lambda: engine.stats().num_running == 0, 5)
    free = engine.stats().kv_pages_free
    assert free == engine.stats().kv_pages_total
    content = json.dumps(body).encode()
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        wait_for(lambda: engine.stats().num_running == sequences, 5)
        if "stream" in path or body.get("stream"):
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert engine.stats().kv_pages_free < free
        generated = engine.stats().generation_tokens_total
    wait_for(lambda: engine.stats().num_running == 0, 2)
    assert engine.stats().kv_pages_free == free
    assert engine.stats().generation_tokens_total - generated < 100


def test_many_leave_and_the_others_stay(live, http):
    sockets = []
    content = json.dumps({"prompt": "Once upon", **ENDLESS, "stream": True}).encode()
    host, port = live.url.removeprefix("http://").split(":")
    for _ in range(4):
        client = socket.create_connection((host, int(port)))
        client.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        sockets.append(client)
    wait_for(lambda: live.engine.stats().num_running == 4, 5)
    for client in sockets[:3]:
        client.close()
    wait_for(lambda: live.engine.stats().num_running == 1, 2)
    # The one that stayed still gets its tokens.
    before = len(sockets[3].recv(65536))
    assert before
    assert sockets[3].recv(65536)
    assert http.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
    sockets[3].close()
    wait_for(lambda: live.engine.stats().num_running == 0, 2)
