"""Retries, failover and deadlines, on real sockets; and that both drivers run the same flows."""

from __future__ import annotations

import asyncio
import inspect
import time

import pytest

import myllm
from myllm import AsyncClient, Client, Timeout

CHAT = {
    "id": "c",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}


def failing(times: int, status: int, headers: dict[str, str] | None = None):
    left = [times]

    def handler(seen, reply):
        if left[0]:
            left[0] -= 1
            reply.json({"error": {"message": "not now"}}, status, headers)
        else:
            reply.json(CHAT)

    return handler


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried(wire, status):
    wire.handler = failing(1, status, {"Retry-After": "0"})
    with Client(wire.url, model="m") as client:
        assert client.chat("x").text == "Hi"
    assert [s.headers["x-retry-count"] for s in wire.seen] == ["0", "1"]
    assert len({s.headers["x-request-id"] for s in wire.seen}) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_the_caller_s_mistakes_are_not(wire, status):
    wire.handler = failing(9, status)
    with Client(wire.url, model="m") as client, pytest.raises(myllm.APIStatusError):
        client.chat("x")
    assert len(wire.seen) == 1


def test_tries_end_with_the_server_s_words(wire):
    wire.handler = failing(9, 503, {"Retry-After": "0"})
    with (
        Client(wire.url, model="m", max_retries=2) as client,
        pytest.raises(myllm.OverloadedError, match="not now"),
    ):
        client.chat("x")
    assert len(wire.seen) == 3


def test_max_retries_0_tries_once(wire):
    wire.handler = failing(9, 503, {"Retry-After": "0"})
    with Client(wire.url, model="m", max_retries=0) as client, pytest.raises(myllm.OverloadedError):
        client.chat("x")
    assert len(wire.seen) == 1


def test_retry_after_is_obeyed(wire):
    wire.handler = failing(1, 429, {"Retry-After": "0.4"})
    start = time.monotonic()
    with Client(wire.url, model="m") as client:
        client.chat("x")
    assert 0.4 <= time.monotonic() - start < 2


def test_retry_after_beyond_the_deadline_is_not_waited_for(wire):
    wire.handler = failing(1, 429, {"Retry-After": "60"})
    start = time.monotonic()
    with Client(wire.url, model="m", timeout=5.0) as client, pytest.raises(myllm.RateLimitError) as caught:
        client.chat("x")
    assert time.monotonic() - start < 2
    assert caught.value.retry_after == 60


def test_a_wrong_port_answers_within_the_connect_timeout_and_says_what_to_do(free_port):
    start = time.monotonic()
    with Client(f"http://127.0.0.1:{free_port}") as client, pytest.raises(myllm.ConnectError) as caught:
        client.chat("x")
    assert time.monotonic() - start < 5
    assert f"No server answers at http://127.0.0.1:{free_port}" in str(caught.value)
    assert f"`myllm serve --port {free_port}`" in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_a_black_hole_answers_within_the_connect_timeout(black_hole):
    start = time.monotonic()
    with Client(f"http://127.0.0.1:{black_hole}", timeout=Timeout(connect=0.5)) as client:
        with pytest.raises(myllm.ConnectTimeoutError) as caught:
            client.chat("x")
    assert time.monotonic() - start < 1.5
    assert "within 0.5 s" in str(caught.value)
    assert caught.value.phase == "connect"
    assert isinstance(caught.value, TimeoutError)


def test_an_unknown_host_is_said_to_be_unknown():
    with (
        Client("http://no-such-host.invalid", max_retries=0) as client,
        pytest.raises(myllm.ConnectError) as caught,
    ):
        client.chat("x")
    assert "not known" in str(caught.value)


def test_a_silent_server_ends_with_the_read_timeout(wire):
    wire.handler = lambda seen, reply: time.sleep(1.5)
    start = time.monotonic()
    with (
        Client(wire.url, model="m", timeout=Timeout(read=0.3)) as client,
        pytest.raises(myllm.RequestTimeoutError) as caught,
    ):
        client.chat("x")
    assert time.monotonic() - start < 1.2  # and it is not asked again
    assert caught.value.phase == "read"


def trickle(seen, reply):
    reply.start_stream()
    for _ in range(40):
        reply.piece(": alive\n\n")
        time.sleep(0.05)


def test_the_deadline_ends_an_answer_that_keeps_coming(wire):
    wire.handler = trickle
    start = time.monotonic()
    with Client(wire.url, model="m", timeout=Timeout(total=0.4)) as client:
        with pytest.raises(myllm.RequestTimeoutError) as caught:
            client.chat("x")
    assert 0.3 < time.monotonic() - start < 1
    assert caught.value.phase == "total"


async def test_the_deadline_holds_in_async_streams(wire):
    wire.handler = trickle
    start = time.monotonic()
    async with AsyncClient(wire.url, model="m") as client:
        async with await client.stream_chat("x", timeout=Timeout(total=0.4)) as stream:
            with pytest.raises(myllm.RequestTimeoutError):
                async for _ in stream:
                    pass
    assert 0.3 < time.monotonic() - start < 1


def test_a_dead_server_s_calls_go_to_the_next(wire, free_port):
    wire.answers(CHAT)
    with Client([f"http://127.0.0.1:{free_port}", wire.url], model="m", max_retries=0) as client:
        answers = [client.chat("x") for _ in range(4)]
    assert {answer.endpoint for answer in answers} == {wire.url}


def test_all_servers_dead_is_an_error_of_the_last(free_port):
    with Client([f"http://127.0.0.1:{free_port}", f"http://localhost:{free_port}"], max_retries=0) as client:
        with pytest.raises(myllm.ConnectError):
            client.chat("x")


def test_a_reset_connection_is_retried(wire):
    calls = []

    def handler(seen, reply):
        calls.append(seen)
        if len(calls) == 1:
            reply.hang_up()
        else:
            reply.json(CHAT)

    wire.handler = handler
    with Client(wire.url, model="m") as client:
        assert client.chat("x").text == "Hi"
    assert len(calls) == 2


def test_without_a_model_the_server_s_first_is_asked_for(wire):
    wire.answers({"object": "list", "data": [{"id": "served"}, {"id": "other"}]}, CHAT)
    with Client(wire.url) as client:
        client.chat("x")
    assert wire.bodies[-1]["model"] == "served"


async def test_async_flow_is_the_same(wire, free_port):
    wire.handler = failing(1, 503, {"Retry-After": "0"})
    async with AsyncClient([f"http://127.0.0.1:{free_port}", wire.url], model="m") as client:
        assert (await client.chat("x")).text == "Hi"
    with pytest.raises(myllm.ConnectError, match="myllm serve"):
        async with AsyncClient(f"http://127.0.0.1:{free_port}", max_retries=0) as client:
            await client.chat("x")


def test_a_cancelled_call_closes_its_connection(wire):
    left = []

    def handler(seen, reply):
        try:
            reply.start_stream()
            for _ in range(200):
                reply.piece(": alive\n\n")
                time.sleep(0.01)
        except OSError:
            left.append(True)

    wire.handler = handler

    async def main():
        async with AsyncClient(wire.url, model="m") as client:
            task = asyncio.create_task(client.chat("x"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(100):
                if left:
                    return
                await asyncio.sleep(0.02)

    asyncio.run(main())
    assert left


def test_a_client_serves_several_event_loops(wire):
    wire.answers(CHAT)
    client = AsyncClient(wire.url, model="m")
    for _ in range(3):
        assert asyncio.run(client.chat("x")).text == "Hi"


@pytest.mark.parametrize(
    "name", ["chat", "complete", "stream_chat", "stream_complete", "models", "close", "with_options"]
)
def test_both_clients_have_the_same_methods(name):
    one, other = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert one.parameters == other.parameters
    assert inspect.getdoc(getattr(Client, name))
    assert inspect.getdoc(getattr(AsyncClient, name))
