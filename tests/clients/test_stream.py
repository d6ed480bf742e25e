from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time

import pytest
import uvloop

import myllm
from myllm import AsyncClient, Client


def chunk(delta: dict, finish: str | None = None, index: int = 0, **more) -> str:
    body = {
        "id": "s",
        "model": "m",
        "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
        **more,
    }
    return f"data: {json.dumps(body)}\n\n"


USAGE = 'data: {"id": "s", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}\n\n'
DONE = "data: [DONE]\n\n"
WHOLE = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hé"}),
    chunk({"content": "llo"}, "stop"),
    USAGE,
    DONE,
]


def test_chunks_and_the_whole(wire):
    wire.streams(*WHOLE)
    with Client(wire.url, dialect="vllm", model="m") as client:
        with client.stream_chat("x") as stream:
            assert [c.text for c in stream] == ["", "Hé", "llo", ""]
        whole = stream.final()
    assert wire.bodies[0]["stream"] is True
    assert wire.bodies[0]["stream_options"] == {"include_usage": True}
    assert (whole.text, whole.choices[0].finish_reason, whole.usage.total_tokens) == ("Héllo", "stop", 3)
    assert whole.endpoint == wire.url
    assert whole.request_id == stream.request_id


def test_bytes_cut_anywhere_give_the_same(wire):
    body = "".join(WHOLE).encode()
    wire.streams(*[body[i : i + 7] for i in range(0, len(body), 7)])
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        assert stream.final().text == "Héllo"


async def test_async_chunks_and_the_whole(wire):
    wire.streams(*WHOLE)
    async with (
        AsyncClient(wire.url, dialect="vllm", model="m") as client,
        await client.stream_chat("x") as stream,
    ):
        assert [c.text async for c in stream] == ["", "Hé", "llo", ""]
        assert (await stream.final()).text == "Héllo"
        async with client.stream_chat("x") as stream:  # the way of the sync client
            assert [c.text async for c in stream] == ["", "Hé", "llo", ""]
        assert (await stream.final()).text == "Héllo"


def test_tool_calls_and_reasoning_accumulate(wire):
    first = {"index": 0, "id": "a", "type": "function", "function": {"name": "add", "arguments": ""}}
    second = {"index": 1, "id": "b", "type": "function", "function": {"name": "mul", "arguments": "{}"}}
    wire.streams(
        chunk({"role": "assistant", "reasoning": "I "}),
        chunk({"reasoning_content": "think"}),
        chunk({"tool_calls": [first]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}, second]}),
        chunk({}, "tool_calls"),
        DONE,
    )
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        message = stream.final().message
    assert message.reasoning == "I think"
    assert [(c.id, c.function.name, c.function.arguments) for c in message.tool_calls] == [
        ("a", "add", '{"x": 1}'),
        ("b", "mul", "{}"),
    ]


def test_several_choices_keep_apart(wire):
    wire.streams(
        chunk({"content": "a"}, index=0), chunk({"content": "b"}, index=1),
        chunk({"content": "A"}, "stop", index=0), chunk({"content": "B"}, "length", index=1), DONE,
    )  # fmt: skip
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x", n=2) as stream:
        assert [(c.index, c.message.content, c.finish_reason) for c in stream.final().choices] == [
            (0, "aA", "stop"),
            (1, "bB", "length"),
        ]


def test_a_stream_may_end_without_done_when_every_choice_has_finished(wire):
    wire.streams(chunk({"content": "a"}, "stop"))
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        assert stream.final().text == "a"


@pytest.mark.parametrize("end", ["ends", "breaks"])
def test_a_stream_of_two_answers_that_lost_one_is_incomplete(wire, end):
    def handler(seen, reply):
        reply.start_stream()
        reply.piece(chunk({"content": "a"}, "stop"))
        reply.end_stream() if end == "ends" else reply.hang_up()

    wire.handler = handler
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x", n=2) as stream:
        with pytest.raises(myllm.IncompleteStreamError) as caught:
            stream.final()
    assert caught.value.partial.text == "a"


def test_a_stream_without_any_answer_is_a_bad_one(wire):
    wire.streams(DONE)
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(myllm.InvalidResponseError, match="without an answer"):
            stream.final()


def test_a_byte_order_mark_costs_no_chunk(wire):
    wire.streams(b"\xef\xbb\xbf" + "".join(WHOLE).encode())
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        assert len(list(stream)) == 4


def test_a_stream_that_just_ends_is_incomplete(wire):
    wire.streams(chunk({"content": "half an ans"}))
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(myllm.IncompleteStreamError) as caught:
            stream.final()
    assert caught.value.partial.text == "half an ans"


def test_a_broken_connection_is_an_incomplete_stream_and_is_not_retried(wire):
    def handler(seen, reply):
        reply.start_stream()
        reply.piece(chunk({"content": "half"}))
        time.sleep(0.05)
        reply.hang_up()

    wire.handler = handler
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(myllm.IncompleteStreamError) as caught:
            list(stream)
    assert caught.value.partial.text == "half"
    assert len(wire.seen) == 1


@pytest.mark.parametrize(
    ("event", "error"),
    [
        ({"error": {"message": "boom", "code": 500}}, myllm.ServerError),
        ({"error": {"message": "too long", "http_status_code": 422}}, myllm.ValidationError),
        ({"error": "boom"}, myllm.ServerError),
        (
            {"object": "error", "message": "boom", "type": "InternalServerError", "code": 500},
            myllm.ServerError,
        ),
        ({"object": "error", "message": "boom", "code": 400}, myllm.BadRequestError),
        ({"message": "boom"}, myllm.ServerError),
    ],
)
def test_an_error_inside_a_stream_is_raised_with_what_had_come(wire, event, error):
    wire.streams(chunk({"content": "half"}), f"data: {json.dumps(event)}\n\n", DONE)
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(error) as caught:
            list(stream)
    assert caught.value.partial.text == "half"
    assert caught.value.endpoint == wire.url


def test_garbage_inside_a_stream(wire):
    wire.streams(chunk({"content": "a"}), "data: {nonsense\n\n")
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(myllm.InvalidResponseError, match="nonsense"):
            list(stream)


def test_a_refused_stream_raises_at_once(wire):
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "no"}}, 400)
    with Client(wire.url, dialect="vllm", model="m") as client, pytest.raises(myllm.BadRequestError):
        client.stream_chat("x")


def test_leaving_early_closes_the_connection_and_has_no_whole(wire):
    left = []

    def handler(seen, reply):
        try:
            reply.start_stream()
            for _ in range(500):
                reply.piece(chunk({"content": "x"}))
                time.sleep(0.005)
        except OSError:
            left.append(True)

    wire.handler = handler
    with Client(wire.url, dialect="vllm", model="m") as client:
        with client.stream_chat("x") as stream:
            next(iter(stream))
        with pytest.raises(myllm.IncompleteStreamError, match="closed before its end"):
            stream.final()
    for _ in range(100):
        if left:
            break
        time.sleep(0.02)
    assert left


def test_a_connection_that_breaks_after_the_end_is_no_error(wire):
    def handler(seen, reply):
        reply.start_stream()
        for piece in WHOLE:
            reply.piece(piece)
        reply.hang_up()

    wire.handler = handler
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        assert stream.final().text == "Héllo"


def test_a_body_that_is_never_ended_is_not_waited_for(wire):
    def handler(seen, reply):
        reply.start_stream()
        for piece in WHOLE:
            reply.piece(piece)
        time.sleep(3)

    wire.handler = handler
    start = time.monotonic()
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        assert stream.final().text == "Héllo"
    assert time.monotonic() - start < 1.5


def test_an_event_cut_in_two_is_an_incomplete_stream(wire):
    wire.streams(chunk({"content": "half"}), chunk({"content": "lost"})[:30])
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(myllm.IncompleteStreamError) as caught:
            list(stream)
    assert caught.value.partial.text == "half"


def test_a_whole_answer_in_place_of_a_stream_is_called_that(wire):
    wire.answers({"choices": []})
    with (
        Client(wire.url, dialect="vllm", model="m") as client,
        pytest.raises(myllm.InvalidResponseError, match="no event stream"),
    ):
        client.stream_chat("x")


async def test_a_whole_answer_in_place_of_an_async_stream_too(wire):
    wire.answers({"choices": []})
    async with AsyncClient(wire.url, dialect="vllm", model="m") as client:
        with pytest.raises(myllm.InvalidResponseError, match="no event stream"):
            await client.stream_chat("x")


def test_no_error_is_its_own_cause(wire):
    wire.streams(chunk({"content": "a"}), "data: {nonsense\n\n")
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        with pytest.raises(myllm.InvalidResponseError) as caught:
            list(stream)
    assert caught.value.__cause__ is not caught.value


def endless(seen, reply):
    reply.start_stream()
    reply.piece(chunk({"content": "x"}))
    time.sleep(5)


def test_closing_from_another_thread_ends_the_reader(wire):
    wire.handler = endless
    with Client(wire.url, dialect="vllm", model="m") as client:
        stream = client.stream_chat("x")
        texts = []
        reader = threading.Thread(target=lambda: texts.extend(c.text for c in stream))
        reader.start()
        time.sleep(0.3)
        stream.close()
        reader.join(2)
        assert not reader.is_alive()
    assert texts == ["x"]


def test_closing_at_any_moment_of_a_read_only_ends_it(wire):
    def without_pause(seen, reply):
        with contextlib.suppress(OSError):
            reply.start_stream()
            while True:
                reply.piece(chunk({"content": "x"}) * 50)

    wire.handler = without_pause
    with Client(wire.url, dialect="vllm", model="m") as client:
        for number in range(40):
            stream = client.stream_chat("x")
            next(stream)
            closer = threading.Timer(number / 4000, stream.close)
            closer.start()
            assert all(c.text == "x" for c in stream)
            closer.join()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_closing_from_another_task_ends_the_reader(wire, loop):
    wire.handler = endless
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(_close_while_reading(wire))


async def _close_while_reading(wire):
    async with AsyncClient(wire.url, dialect="vllm", model="m") as client:
        stream = await client.stream_chat("x")

        async def read():
            return [c.text async for c in stream]

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.3)
        await stream.close()
        assert await asyncio.wait_for(reader, 2) == ["x"]


def test_a_stream_that_nobody_reads_gives_its_connection_back(wire):
    left = threading.Event()

    def handler(seen, reply):
        try:
            reply.start_stream()
            for _ in range(300):
                reply.piece(chunk({"content": "x"}))
                time.sleep(0.01)
        except OSError:
            left.set()

    wire.handler = handler
    with Client(wire.url, dialect="vllm", model="m") as client:
        stream = client.stream_chat("x")
        del stream
        gc.collect()
        assert left.wait(2)


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": None}}]},
        {"role": "", "content": "x"},
        {"content": None, "reasoning": None, "reasoning_content": "x"},
    ],
)
def test_nulls_and_oddities_of_real_servers_are_borne(wire, delta):
    wire.streams(chunk(delta), 'data: {"id": "s", "choices": null}\n\n', chunk({}, "stop"), DONE)
    with Client(wire.url, dialect="vllm", model="m") as client, client.stream_chat("x") as stream:
        message = stream.final().message
    assert (
        message.content == "x" or message.reasoning == "x" or message.tool_calls[0].function.arguments == ""
    )
