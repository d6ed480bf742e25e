"""The balancer as an httpx transport, under the SDKs that people use it with."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

import myllm
from myllm import AsyncPoolTransport, Endpoint, PoolTransport, Timeout


def completion(text: str):
    return {
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
    }  # fmt: skip


MESSAGES = [{"role": "user", "content": "Hello"}]


def openai_client(transport: PoolTransport, **kwargs) -> openai.OpenAI:
    http = httpx.Client(transport=transport)
    return openai.OpenAI(
        base_url="http://pool/v1", api_key="sdk-key", http_client=http, max_retries=0, **kwargs
    )


def test_the_openai_sdk_is_balanced(wire, other_wire):
    wire.answers(completion("a"))
    other_wire.answers(completion("b"))
    with openai_client(PoolTransport([wire.url + "/v1", other_wire.url], "round_robin")) as client:
        texts = [
            client.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.content
            for _ in range(4)
        ]
    assert texts == ["a", "b", "a", "b"]
    assert {seen.path for seen in wire.seen + other_wire.seen} == {"/v1/chat/completions"}
    assert wire.seen[0].headers["authorization"] == "Bearer sdk-key"
    assert wire.seen[0].headers["host"] == wire.url.removeprefix("http://")


async def test_the_async_openai_sdk_too(wire, other_wire):
    wire.answers(completion("a"))
    other_wire.answers(completion("b"))
    transport = AsyncPoolTransport([wire.url, other_wire.url], "round_robin")
    async with openai.AsyncOpenAI(
        base_url="http://pool/v1", api_key="k", http_client=httpx.AsyncClient(transport=transport)
    ) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model="m", messages=MESSAGES) for _ in range(6))
        )
    assert sorted(answer.choices[0].message.content or "" for answer in answers) == ["a"] * 3 + ["b"] * 3


def test_a_dead_server_s_requests_go_to_the_next_and_its_breaker_opens(wire, free_port):
    wire.answers(completion("a"))
    transport = PoolTransport([f"http://127.0.0.1:{free_port}", wire.url], "round_robin")
    with openai_client(transport) as client:
        for _ in range(3):
            client.chat.completions.create(model="m", messages=MESSAGES)
    assert [status.state for status in transport.endpoints()] == ["open", "closed"]
    assert transport.endpoints()[0].requests == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_server_without_room_passes_its_request_on(wire, other_wire, status):
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "busy"}}, status)
    other_wire.answers(completion("b"))
    with openai_client(PoolTransport([wire.url, other_wire.url], "round_robin")) as client:
        assert client.chat.completions.create(model="m", messages=MESSAGES).choices[0].message.content == "b"


def test_what_all_servers_say_reaches_the_sdk(wire, other_wire):
    for server in (wire, other_wire):
        server.handler = lambda seen, reply: reply.json(
            {"error": {"message": "busy"}}, 429, {"Retry-After": "1"}
        )
    with openai_client(PoolTransport([wire.url, other_wire.url])) as client:
        with pytest.raises(openai.RateLimitError, match="busy"):
            client.chat.completions.create(model="m", messages=MESSAGES)
    assert len(wire.seen) + len(other_wire.seen) == 2


def test_a_mistake_of_the_caller_s_is_told_once(wire, other_wire):
    for server in (wire, other_wire):
        server.handler = lambda seen, reply: reply.json({"error": {"message": "no such field"}}, 400)
    with openai_client(PoolTransport([wire.url, other_wire.url])) as client:
        with pytest.raises(openai.BadRequestError, match="no such field"):
            client.chat.completions.create(model="m", messages=MESSAGES)
    assert len(wire.seen) + len(other_wire.seen) == 1


def test_when_no_server_lives_the_error_says_where(free_port):
    transport = PoolTransport([f"http://127.0.0.1:{free_port}"])
    with httpx.Client(transport=transport) as client:
        with pytest.raises(httpx.ConnectError, match=f"{free_port}: the connection was refused"):
            client.get("http://pool/v1/models")


def test_streams_pass_through_piece_by_piece(wire):
    chunk = '{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%s"}}]}'
    wire.streams(*(f"data: {chunk % word}\n\n" for word in "abc"), "data: [DONE]\n\n")
    transport = PoolTransport([wire.url])
    with openai_client(transport) as client:
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert [c.choices[0].delta.content for c in stream] == ["a", "b", "c"]
        assert transport.endpoints()[0].in_flight == 0


def test_a_server_killed_in_a_stream_is_told(wire):
    def handler(seen, reply):
        reply.start_stream()
        reply.piece("data: {}\n\n")
        reply.hang_up()

    wire.handler = handler
    transport = PoolTransport([wire.url])
    with httpx.Client(transport=transport) as client, client.stream("GET", "http://pool/v1/x") as response:
        with pytest.raises(httpx.TransportError, match="broke before the answer was complete"):
            list(response.iter_bytes())
    assert transport.endpoints()[0].failures == 1


def test_the_sdk_s_timeout_and_ours_the_shorter_holds(wire):
    import time

    wire.handler = lambda seen, reply: time.sleep(1)
    for sdk, ours in ((0.2, None), (30, Timeout(first_byte=0.2))):
        with openai_client(PoolTransport([wire.url], timeout=ours), timeout=sdk) as client:
            start = time.monotonic()
            with pytest.raises(openai.APITimeoutError):
                client.chat.completions.create(model="m", messages=MESSAGES)
            assert time.monotonic() - start < 0.9


def test_keys_and_prefixes_of_their_own(wire):
    wire.answers(completion("a"))
    transport = PoolTransport([Endpoint(f"{wire.url}/llm/v1", api_key="own")])
    with openai_client(transport) as client:
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert wire.seen[0].path == "/llm/v1/chat/completions"
    assert wire.seen[0].headers["authorization"] == "Bearer own"


def test_a_base_url_that_is_one_of_the_servers_keeps_its_prefix(wire):
    wire.answers(completion("a"))
    with httpx.Client(transport=PoolTransport([f"{wire.url}/llm"])) as client:
        client.post(f"{wire.url}/llm/v1/chat/completions", json={})
    assert wire.seen[0].path == "/llm/v1/chat/completions"


def test_affinity_by_header_and_by_beginning(wire, other_wire):
    for server in (wire, other_wire):
        server.answers(completion("x"))
    transport = PoolTransport([wire.url, other_wire.url], "affinity")
    with openai_client(transport) as client:
        for number in range(6):
            client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": f"{number}"}],
                extra_headers={"X-Session-Id": "s"},
            )
    assert sorted((len(wire.seen), len(other_wire.seen))) == [0, 6]


def test_litellm_is_balanced_through_its_own_client(wire, other_wire):
    import litellm

    for server, name in ((wire, "a"), (other_wire, "b")):
        server.answers(completion(name))
    http = httpx.Client(transport=PoolTransport([wire.url, other_wire.url], "round_robin"))
    client = openai.OpenAI(base_url="http://pool/v1", api_key="k", http_client=http, max_retries=0)
    texts = {
        litellm.completion("openai/m", messages=MESSAGES, client=client).choices[0].message.content
        for _ in range(2)
    }
    assert texts == {"a", "b"}


def test_a_real_server(server):
    with openai_client(PoolTransport([server.url])) as client:
        answer = client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            max_tokens=12,
        )
    assert "Paris" in (answer.choices[0].message.content or "")


def test_a_server_list_that_is_none_is_refused():
    with pytest.raises(myllm.InvalidParameterError):
        PoolTransport([])
