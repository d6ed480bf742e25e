"""Retries, failover and deadlines, on real sockets; and that both drivers run the same flows."""

from __future__ import annotations

import asyncio
import gc
import inspect
import time

import psutil
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
    with Client(wire.url, dialect="vllm", model="m") as client:
        assert client.chat("x").text == "Hi"
    assert [s.headers["x-retry-count"] for s in wire.seen] == ["0", "1"]
    assert len({s.headers["x-request-id"] for s in wire.seen}) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_the_caller_s_mistakes_are_not(wire, status):
    wire.handler = failing(9, status)
    with Client(wire.url, dialect="vllm", model="m") as client, pytest.raises(myllm.APIStatusError):
        client.chat("x")
    assert len(wire.seen) == 1


def test_tries_end_with_the_server_s_words(wire):
    wire.handler = failing(9, 503, {"Retry-After": "0"})
    with (
        Client(wire.url, dialect="vllm", model="m", max_retries=2) as client,
        pytest.raises(myllm.OverloadedError, match="not now"),
    ):
        client.chat("x")
    assert len(wire.seen) == 3


def test_max_retries_0_tries_once(wire):
    wire.handler = failing(9, 503, {"Retry-After": "0"})
    with (
        Client(wire.url, dialect="vllm", model="m", max_retries=0) as client,
        pytest.raises(myllm.OverloadedError),
    ):
        client.chat("x")
    assert len(wire.seen) == 1


def test_retry_after_is_obeyed(wire):
    wire.handler = failing(1, 429, {"Retry-After": "0.4"})
    start = time.monotonic()
    with Client(wire.url, dialect="vllm", model="m") as client:
        client.chat("x")
    assert 0.4 <= time.monotonic() - start < 2


def test_retry_after_beyond_the_deadline_is_not_waited_for(wire):
    wire.handler = failing(1, 429, {"Retry-After": "60"})
    start = time.monotonic()
    with (
        Client(wire.url, dialect="vllm", model="m", timeout=5.0) as client,
        pytest.raises(myllm.RateLimitError) as caught,
    ):
        client.chat("x")
    assert time.monotonic() - start < 2
    assert caught.value.retry_after == 60


def test_a_wrong_port_answers_within_the_connect_timeout_and_says_what_to_do(free_port):
    start = time.monotonic()
    with (
        Client(f"http://127.0.0.1:{free_port}", dialect="vllm") as client,
        pytest.raises(myllm.ConnectError) as caught,
    ):
        client.chat("x")
    assert time.monotonic() - start < 5
    assert f"No server answers at http://127.0.0.1:{free_port}" in str(caught.value)
    assert f"`myllm serve --port {free_port}`" in str(caught.value)
    assert isinstance(caught.value, ConnectionError)


def test_a_black_hole_answers_within_the_connect_timeout(black_hole):
    start = time.monotonic()
    with Client(f"http://127.0.0.1:{black_hole}", dialect="vllm", timeout=Timeout(connect=0.5)) as client:
        with pytest.raises(myllm.ConnectTimeoutError) as caught:
            client.chat("x")
    assert time.monotonic() - start < 1.5
    assert "within 0.5 s" in str(caught.value)
    assert caught.value.phase == "connect"
    assert isinstance(caught.value, TimeoutError)


def test_a_black_hole_is_a_connect_timeout_whichever_limit_ended_it(black_hole):
    with Client(f"http://127.0.0.1:{black_hole}", dialect="vllm", timeout=0.3) as client:
        with pytest.raises(myllm.ConnectTimeoutError, match=r"within 0\.3 s") as caught:
            client.chat("x", model="m")
    assert caught.value.phase == "connect"


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
        Client(wire.url, dialect="vllm", model="m", timeout=Timeout(first_byte=0.3)) as client,
        pytest.raises(myllm.RequestTimeoutError) as caught,
    ):
        client.chat("x")
    assert time.monotonic() - start < 1.2  # and it is not asked again
    assert caught.value.phase == "first_byte"


def trickle(seen, reply):
    reply.start_stream()
    for _ in range(40):
        reply.piece(": alive\n\n")
        time.sleep(0.05)


def test_the_deadline_ends_an_answer_that_keeps_coming(wire):
    wire.handler = trickle
    start = time.monotonic()
    with Client(wire.url, dialect="vllm", model="m", timeout=Timeout(total=0.4)) as client:
        with pytest.raises(myllm.RequestTimeoutError) as caught:
            client.chat("x")
    assert 0.3 < time.monotonic() - start < 1
    assert caught.value.phase == "total"


async def test_the_deadline_holds_in_async_streams(wire):
    wire.handler = trickle
    start = time.monotonic()
    async with AsyncClient(wire.url, dialect="vllm", model="m") as client:
        async with await client.stream_chat("x", timeout=Timeout(total=0.4)) as stream:
            with pytest.raises(myllm.RequestTimeoutError):
                async for _ in stream:
                    pass
    assert 0.3 < time.monotonic() - start < 1


def test_a_dead_server_s_calls_go_to_the_next(wire, free_port):
    wire.answers(CHAT)
    with Client(
        [f"http://127.0.0.1:{free_port}", wire.url], dialect="vllm", model="m", max_retries=0
    ) as client:
        answers = [client.chat("x") for _ in range(4)]
    assert {answer.endpoint for answer in answers} == {wire.url}


def test_all_servers_dead_is_an_error_of_the_last(free_port):
    with Client(
        [f"http://127.0.0.1:{free_port}", f"http://localhost:{free_port}"], dialect="vllm", max_retries=0
    ) as client:
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
    with Client(wire.url, dialect="vllm", model="m") as client:
        assert client.chat("x").text == "Hi"
    assert len(calls) == 2


def test_without_a_model_the_server_s_first_is_asked_for(wire):
    wire.answers({"object": "list", "data": [{"id": "served"}, {"id": "other"}]}, CHAT)
    with Client(wire.url, dialect="vllm") as client:
        client.chat("x")
    assert wire.bodies[-1]["model"] == "served"


async def test_async_flow_is_the_same(wire, free_port):
    wire.handler = failing(1, 503, {"Retry-After": "0"})
    async with AsyncClient([f"http://127.0.0.1:{free_port}", wire.url], dialect="vllm", model="m") as client:
        assert (await client.chat("x")).text == "Hi"
    with pytest.raises(myllm.ConnectError, match="myllm serve"):
        async with AsyncClient(f"http://127.0.0.1:{free_port}", dialect="vllm", max_retries=0) as client:
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
        async with AsyncClient(wire.url, dialect="vllm", model="m") as client:
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
    client = AsyncClient(wire.url, dialect="vllm", model="m")
    for _ in range(3):
        assert asyncio.run(client.chat("x")).text == "Hi"


@pytest.mark.parametrize("name", sorted(name for name in vars(Client) if not name.startswith("_")))
def test_both_clients_have_the_same_methods(name):
    one, other = inspect.signature(getattr(Client, name)), inspect.signature(getattr(AsyncClient, name))
    assert one.parameters == other.parameters
    assert inspect.getdoc(getattr(Client, name))
    assert inspect.getdoc(getattr(AsyncClient, name))


def two_servers(wire, other):
    for server, name in ((wire, "a"), (other, "b")):
        server.handler = lambda seen, reply, name=name: reply.json(
            {"data": [{"id": name}]} if seen.method == "GET" else CHAT
        )


def test_each_server_is_asked_for_its_model_once(wire, other_wire):
    two_servers(wire, other_wire)
    with Client([wire.url, other_wire.url], dialect="vllm") as client:
        for _ in range(4):
            client.chat("x")
    assert [seen.method for seen in wire.seen] == ["GET", "POST", "POST"]
    assert [seen.method for seen in other_wire.seen] == ["GET", "POST", "POST"]
    assert [body["model"] for body in wire.bodies[1:]] == ["a", "a"]
    assert [body["model"] for body in other_wire.bodies[1:]] == ["b", "b"]


def test_a_model_that_is_gone_is_asked_for_again(wire):
    names = ["old", "new"]

    def handler(seen, reply):
        if seen.method == "GET":
            reply.json({"data": [{"id": names[0]}]})
        elif seen.body["model"] == names[0]:
            reply.json(CHAT)
        else:
            reply.json({"error": {"message": "no such model"}}, 404)

    wire.handler = handler
    with Client(wire.url, dialect="vllm") as client:
        client.chat("x")
        names.pop(0)
        assert client.chat("x").text == "Hi"
        with pytest.raises(myllm.NotFoundError):
            client.chat("x", model="old")


def test_the_deadline_covers_the_question_for_the_model(wire):
    def handler(seen, reply):
        time.sleep(0.35)
        reply.json({"data": [{"id": "m"}]} if seen.method == "GET" else CHAT)

    wire.handler = handler
    start = time.monotonic()
    with (
        Client(wire.url, dialect="vllm", timeout=0.5) as client,
        pytest.raises(myllm.RequestTimeoutError) as caught,
    ):
        client.chat("x")
    assert time.monotonic() - start < 0.7
    assert caught.value.phase == "total"


@pytest.mark.parametrize("wait", ["86400", "inf", "1e9"])
def test_a_server_that_asks_for_hours_is_not_waited_for(wire, wait):
    wire.handler = failing(9, 503, {"Retry-After": wait})
    start = time.monotonic()
    with (
        Client(wire.url, dialect="vllm", model="m", max_retries=1) as client,
        pytest.raises(myllm.OverloadedError),
    ):
        client.chat("x")
    assert time.monotonic() - start < 3


def test_while_one_server_asks_to_wait_the_other_is_asked(wire, other_wire):
    wire.handler = failing(9, 429, {"Retry-After": "30"})
    other_wire.answers(CHAT)
    start = time.monotonic()
    with Client([wire.url, other_wire.url], dialect="vllm", model="m") as client:
        assert [client.chat("x").text for _ in range(2)] == ["Hi", "Hi"]
    assert time.monotonic() - start < 2


def test_a_connection_lost_late_is_still_retried(wire):
    calls = []

    def handler(seen, reply):
        calls.append(seen)
        if len(calls) == 1:
            time.sleep(0.4)
            reply.hang_up()
        else:
            reply.json(CHAT)

    wire.handler = handler
    with Client(wire.url, dialect="vllm", model="m", timeout=Timeout(connect=0.2)) as client:
        assert client.chat("x").text == "Hi"


def test_a_redirect_is_an_error_that_says_where_to(wire):
    wire.handler = lambda seen, reply: reply.raw(b"", 307, {"Location": "http://elsewhere:1/v1"})
    with Client(wire.url, dialect="vllm", model="m") as client:
        for call in (client.chat, client.stream_chat):
            with pytest.raises(myllm.APIStatusError, match="elsewhere:1"):
                call("x")


def test_a_key_s_newline_is_no_part_of_it(wire):
    wire.answers(CHAT)
    with Client(wire.url, dialect="vllm", model="m", api_key="sesame\n") as client:
        client.chat("x")
    assert wire.seen[0].headers["authorization"] == "Bearer sesame"


@pytest.mark.parametrize(
    "arguments",
    [
        {"api_key": "sés-ame"},
        {"api_key": "ses\name"},
        {"headers": {"X-A": "ses\name"}},
        {"headers": {"X A": "1"}},
    ],
)
def test_what_no_header_can_carry_is_refused_without_being_shown(arguments):
    with pytest.raises(myllm.InvalidParameterError) as caught:
        Client("http://localhost:1", **arguments)
    assert "ame" not in str(caught.value).replace("names", "")


def test_a_key_that_a_server_repeats_is_blotted_out(wire):
    wire.handler = lambda seen, reply: reply.json(
        {"error": {"message": f"bad {seen.headers['authorization']}"}}, 401
    )
    with (
        Client(wire.url, dialect="vllm", model="m", api_key="sesame") as client,
        pytest.raises(myllm.AuthenticationError) as caught,
    ):
        client.chat("x")
    assert "sesame" not in f"{caught.value} {caught.value.__dict__}"


def test_headers_are_one_whatever_their_case(wire):
    wire.answers(CHAT)
    with Client(
        wire.url, model="m", api_key="k", headers={"authorization": "Basic z", "user-agent": "me"}
    ) as client:
        client.chat("x", extra_headers={"USER-AGENT": "you"})
    raw = [name for name in wire.seen[0].names if name.lower() in ("authorization", "user-agent")]
    assert sorted(name.lower() for name in raw) == ["authorization", "user-agent"]
    assert wire.seen[0].headers["authorization"] == "Basic z"
    assert wire.seen[0].headers["user-agent"] == "you"


def test_basic_authentication_and_a_key_exclude_each_other():
    with pytest.raises(myllm.InvalidParameterError, match="same header"):
        Client("http://localhost:1", api_key="k", http=myllm.HTTPOptions(auth=("u", "p")))


@pytest.mark.parametrize("value", [b"bytes", "\ud800", object()])
def test_what_is_no_json_is_refused(wire, value):
    with (
        Client(wire.url, dialect="vllm", model="m") as client,
        pytest.raises(myllm.InvalidParameterError, match="JSON"),
    ):
        client.chat("x", extra_body={"field": value})
    assert wire.seen == []


@pytest.mark.parametrize("timeout", ["5", True, 0, -1, Timeout])
def test_what_is_no_timeout_is_refused(timeout):
    with pytest.raises(myllm.InvalidParameterError, match="timeout"):
        Client("http://localhost:1", timeout=timeout)
    with pytest.raises(myllm.InvalidParameterError, match="timeout"):
        Timeout(connect=timeout)


def test_one_event_loop_after_the_other_leaves_no_sockets(wire):
    wire.answers(CHAT)
    client = AsyncClient(wire.url, dialect="vllm", model="m")
    process = psutil.Process()

    def sockets():
        gc.collect()
        return len([c for c in process.net_connections() if c.raddr and c.raddr.port == wire.port])

    for _ in range(2):
        asyncio.run(client.chat("x"))
    before = sockets()
    for _ in range(10):
        asyncio.run(client.chat("x"))
    assert sockets() <= before


def test_two_names_for_options_of_a_call_are_told_apart():
    with pytest.raises(myllm.UnknownParameterError, match="option of the call"):
        Client("http://localhost:1", extra_body={"a": 1})


def test_servers_with_room_are_found_whatever_max_retries_says(wire, other_wire):
    """Going on to a server that was not tried is failover, and no second try."""
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "full"}}, 503)
    other_wire.answers(CHAT)
    for _ in range(3):
        with Client([wire.url, other_wire.url], dialect="vllm", model="m", max_retries=0) as client:
            assert client.chat("x").text == "Hi"
            assert client.chat("x").text == "Hi"


def test_each_server_s_retry_after_is_its_own(wire, other_wire):
    """One says 30 seconds, the other a tenth of one: the second is asked again, the first is not."""
    wire.handler = lambda seen, reply: reply.json({}, 429, {"Retry-After": "30"})
    other_wire.handler = lambda seen, reply: (
        reply.json(CHAT) if len(other_wire.seen) > 2 else reply.json({}, 429, {"retry-after-ms": "100"})
    )
    with Client([wire.url, other_wire.url], dialect="vllm", model="m", max_retries=4) as client:
        assert client.chat("x").text == "Hi"
    assert (len(wire.seen), len(other_wire.seen)) == (1, 3)


def strict(seen, reply):
    """A template that refuses system messages, as Gemma's does."""
    if seen.method == "GET":
        reply.json({"data": [{"id": "gemma"}]})
    elif seen.body["messages"][0]["role"] == "system":
        reply.json({"error": {"message": "System role not supported"}}, 400)
    else:
        reply.json(CHAT)


@pytest.mark.parametrize("model", ["gemma", None])
def test_the_auto_policy_finds_out_once_what_a_template_refuses(wire, model):
    wire.handler = strict
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with Client(wire.url, dialect="vllm", model=model, message_policy="auto") as client:
        for _ in range(2):
            assert client.chat(messages).text == "Hi"
    assert [s.body["messages"][0]["role"] for s in wire.seen if s.body] == ["system", "user", "user"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("http://localhost:1", "model"), "model="),
        ((8000,), "base_url"),
        (("",), "base_url"),
        (([],), "base_url"),
        ((["http://localhost:1", 8000],), "8000"),
    ],
)
def test_misplaced_arguments_are_told_apart(arguments, named):
    with pytest.raises(myllm.InvalidParameterError, match=named):
        Client(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"http": {}},
        {"breaker": 3},
        {"policy": 5},
        {"hooks": 5},
        {"hooks": [myllm.Hook]},
        {"api_key": 5},
        {"headers": "x"},
        {"timeout": "5"},
    ],
)
def test_arguments_of_a_wrong_kind_are_named(arguments):
    with pytest.raises(myllm.InvalidParameterError, match=next(iter(arguments))):
        Client("http://localhost:1", **arguments)


def test_options_of_the_client_are_no_parameters():
    with pytest.raises(myllm.UnknownParameterError, match=r"Client\(api_key=…\)"):
        Client("http://localhost:1").with_options(api_key="k")


def test_a_shape_in_with_options_takes_the_place_of_the_default_one():
    client = Client("http://localhost:1", json_schema={"type": "object"}).with_options(regex="a+")
    assert client.defaults == {"regex": "a+"}


def test_a_key_is_in_no_repr_that_a_hook_may_log(wire):
    shown = []

    class Logging(myllm.Hook):
        def sending(self, record, send):
            shown.append(repr(send) + repr(record))

    wire.answers(CHAT)
    with Client(wire.url, dialect="vllm", model="m", api_key="s3cret-key", hooks=[Logging()]) as client:
        client.chat("x", extra_headers={"X-Tenant-Key": "s3cret-key"})
    assert "s3cret-key" not in shown[0]


@pytest.mark.parametrize(
    "options",
    [{"cache": "a.sqlite3"}, {"cache": True}, {"extra_body": "x"}, {"extra_headers": "x"}, {"session": 5}],
)
def test_options_of_a_wrong_kind_are_named(options):
    with pytest.raises(myllm.InvalidParameterError, match=next(iter(options))):
        Client("http://localhost:1", model="m").chat("x", **options)


def test_a_hook_counts_tries_and_not_questions(wire):
    attempts = []

    class Counting(myllm.Hook):
        def ended(self, record):
            attempts.append(record.attempts)

    wire.handler = lambda seen, reply: reply.json({"data": [{"id": "m"}]} if seen.method == "GET" else CHAT)
    with Client(wire.url, hooks=[Counting()]) as client:
        client.chat("x")
    wire.handler = failing(1, 503, {"Retry-After": "0"})
    with Client(wire.url, dialect="vllm", model="m", hooks=[Counting()]) as client:
        client.chat("x")
    assert attempts == [1, 2]


def test_parse_wants_a_model_class():
    with pytest.raises(myllm.InvalidParameterError, match="pydantic"):
        Client("http://localhost:1").parse({"type": "object"}, "x")
