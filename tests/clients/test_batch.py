from __future__ import annotations

import asyncio
import itertools
import json
import select
import threading
import time
from contextlib import aclosing

import pytest

from myllm import AsyncClient, Client
from myllm.batch import abatch, batch
from myllm.batch.lines import failure, read_line, success
from myllm.errors import BadRequestError, InvalidParameterError, UnknownParameterError


def chat_body(text: str, **fields) -> dict:
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
        **fields,
    }


def echo(seen, reply) -> None:
    """Answer every kind of call with what was asked."""
    body = seen.body
    if "messages" in body:
        text = body["messages"][-1]["content"]
        if text == "bad":
            reply.json({"error": {"message": "I don't like it"}}, status=400)
        else:
            reply.json(chat_body(text))
    elif "prompt" in body:
        reply.json(
            {"object": "text_completion", "choices": [{"text": body["prompt"], "finish_reason": "stop"}]}
        )
    else:
        texts = body["input"]
        data = [
            {"object": "embedding", "index": i, "embedding": [float(len(t))]} for i, t in enumerate(texts)
        ]
        reply.json({"object": "list", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})


@pytest.fixture
def twin(wire):
    wire.handler = echo
    return lambda: AsyncClient(wire.url, model="m", dialect="openai", max_retries=0)


@pytest.fixture(params=["sync", "async"])
def run(request, twin):
    """Both drivers as one function that returns all results."""
    if request.param == "sync":
        return lambda requests, **options: list(batch(twin, requests, **options))

    def collect(requests, **options):
        async def main():
            async with twin() as client:
                return [result async for result in abatch(client, requests, **options)]

        return asyncio.run(main())

    return collect


def line(custom_id="1", url="/v1/chat/completions", **body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def test_every_way_to_write_a_request(run, wire):
    messages = [{"role": "user", "content": "messages"}]
    results = run(
        [
            "text",
            messages,
            {"messages": messages, "max_tokens": 7, "custom_id": "named"},
            {"prompt": "once", "seed": 1},
            {"input": ["a", "bcd"]},
            line("l1", messages=messages, temperature=0, stream=False, user=None),
            line("l2", "/v1/completions", prompt="line", max_completion_tokens=3),
            line("l3", "/v1/embeddings", input=["ab"], encoding_format="float"),
        ],
    )
    assert [r.error for r in results] == [None] * 8
    assert [r.index for r in results] == list(range(8))
    assert [r.custom_id for r in results] == [None, None, "named", None, None, "l1", "l2", "l3"]
    assert [r.answer.text for r in results[:4]] == ["text", "messages", "messages", "once"]
    assert results[4].answer.vectors == [[1.0], [3.0]]
    assert results[7].answer.vectors == [[2.0]]
    sent = [{k: v for k, v in b.items() if k not in ("messages", "prompt", "input")} for b in wire.bodies]
    for expected in (
        {"model": "m", "max_tokens": 7},
        {"model": "m", "seed": 1},
        {"model": "m", "temperature": 0.0},
    ):
        assert expected in sent
    assert {"model": "m", "max_tokens": 3} in sent


def test_shared_options_hold_where_a_request_sets_none_under_any_name(run, wire):
    run(["a", {"prompt": "b", "max_new_tokens": 9}, line(messages="c", model="other")], max_tokens=5)
    assert sorted((b["max_tokens"], b["model"]) for b in wire.bodies) == [(5, "m"), (5, "other"), (9, "m")]


def test_failed_requests_do_not_stop_the_others(run):
    wrong = [
        "bad",
        7,
        {"prompt": "x", "temprature": 1},
        {"max_tokens": 1},
        {"prompt": "x", "messages": "y"},
        line(url="/v1/files", messages="x"),
        line(messages="x", stream=True),
        {**line(messages="x"), "bdoy": {}},
        {"custom_id": "c", "url": "/v1/completions", "body": {"messages": "x"}},
        {"custom_id": "c", "url": ["/v1/completions"], "body": None},
        {**line(messages="x"), "method": "GET"},
    ]
    results = run([*itertools.chain.from_iterable((w, "good") for w in wrong)])
    assert all(r.answer.text == "good" and r.error is None for r in results[1::2])
    errors = [r.error for r in results[::2]]
    assert all(r.answer is None for r in results[::2])
    assert isinstance(errors[0], BadRequestError)
    assert isinstance(errors[2], UnknownParameterError)
    assert all(isinstance(error, InvalidParameterError) for error in errors[1:])
    for error, words in zip(
        errors[1:],
        [
            "7",
            "temperature",
            "messages",
            "exactly one",
            "/v1/files",
            "stream",
            "body",
            "prompt",
            "url",
            "GET",
        ],
        strict=True,
    ):
        assert words in str(error)


def slow(text: str) -> float:
    return float(text.rsplit(" ", 1)[-1])


def test_ordered_or_as_answered(run, wire):
    def handler(seen, reply):
        time.sleep(slow(seen.body["messages"][0]["content"]))
        echo(seen, reply)

    wire.handler = handler
    requests = ["a 0.3", "b 0", "c 0.1"]
    assert [r.answer.text for r in run(requests)] == requests
    results = run(requests, ordered=False)
    assert [(r.index, r.answer.text) for r in results] == [(1, "b 0"), (2, "c 0.1"), (0, "a 0.3")]


@pytest.mark.parametrize("ordered", [True, False])
def test_concurrency_is_reached_and_never_passed(run, wire, ordered):
    now, most, lock = 0, 0, threading.Lock()

    def handler(seen, reply):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        echo(seen, reply)

    wire.handler = handler
    results = run([str(i) for i in range(40)], concurrency=5, ordered=ordered)
    assert sorted(int(r.answer.text) for r in results) == list(range(40))
    assert most == 5


@pytest.mark.parametrize("ordered", [True, False])
def test_an_endless_input_is_drawn_a_window_ahead(twin, ordered):
    drawn = 0

    def endless():
        nonlocal drawn
        while True:
            drawn += 1
            yield str(drawn)

    results = batch(twin, endless(), concurrency=3, ordered=ordered)
    for taken in range(1, 50):
        next(results)
        assert drawn <= taken + 6
    results.close()


def test_a_result_is_handed_on_before_the_input_ends(twin):
    def feed():
        yield "first"
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not answered:
            yield "more"
            time.sleep(0.01)

    answered = []
    for result in batch(twin, feed()):
        answered.append(result.answer.text)
    assert len(answered) < 100


def test_an_asynchronous_input(twin):
    async def feed():
        for i in range(20):
            await asyncio.sleep(0)
            yield str(i)

    async def main():
        async with twin() as client:
            return [r.answer.text async for r in abatch(client, feed(), concurrency=4)]

    assert asyncio.run(main()) == [str(i) for i in range(20)]


def gone(reply, within: float = 5.0) -> bool:
    """Whether the client closes its connection while it is not answered."""
    connection = reply._http.connection
    readable, _, _ = select.select([connection], [], [], within)
    return bool(readable) and connection.recv(1) == b""


@pytest.mark.parametrize("driver", ["sync", "async"])
def test_leaving_early_cancels_what_is_in_flight(twin, wire, driver):
    left = []

    def handler(seen, reply):
        if seen.body["messages"][0]["content"] == "quick":
            echo(seen, reply)
        else:
            left.append(gone(reply))
            reply.hang_up()

    wire.handler = handler
    requests = ["quick", *["hanging"] * 4]
    start = time.monotonic()
    if driver == "sync":
        for result in batch(twin, requests, concurrency=8, ordered=False):
            assert result.answer.text == "quick"
            wait_until(lambda: len(wire.seen) == 5)
            break
    else:

        async def main():
            async with (
                twin() as client,
                aclosing(abatch(client, requests, concurrency=8, ordered=False)) as results,
            ):
                async for result in results:
                    assert result.answer.text == "quick"
                    await asyncio.to_thread(wait_until, lambda: len(wire.seen) == 5)
                    break

        asyncio.run(main())
    assert time.monotonic() - start < 4
    wait_until(lambda: len(left) == 4)
    assert left == [True] * 4
    assert not [t for t in threading.enumerate() if t.name == "myllm-batch"]


def wait_until(condition, timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_requests_are_drawn_in_the_callers_thread(twin):
    threads = []

    def feed():
        for i in range(10):
            threads.append(threading.current_thread())
            yield str(i)

    assert len(list(batch(twin, feed()))) == 10
    assert set(threads) == {threading.current_thread()}


def test_an_input_that_fails_ends_the_batch_and_leaves_nothing_behind(twin):
    def feed():
        yield "one"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        list(batch(twin, feed()))
    assert not [t for t in threading.enumerate() if t.name == "myllm-batch"]


async def test_the_synchronous_batch_works_where_a_loop_is_running(twin):
    assert [r.answer.text for r in batch(twin, ["a", "b"])] == ["a", "b"]


def test_a_client_that_cannot_be_made_is_an_error_of_the_batch():
    def make():
        raise InvalidParameterError("no such thing")

    with pytest.raises(InvalidParameterError, match="no such thing"):
        list(batch(make, ["a"]))


@pytest.mark.parametrize(
    ("requests", "options", "words"),
    [
        ("a text", {}, "single request"),
        ({"prompt": "x"}, {}, "single request"),
        (["a"], {"concurrency": 0}, "concurrency=0"),
        (["a"], {"max_tokenz": 1}, "max_tokens"),
        (["a"], {"temperature": -1}, "temperature"),
    ],
)
def test_wrong_arguments_are_errors_at_once(twin, requests, options, words):
    with pytest.raises(InvalidParameterError, match=words):
        batch(twin, requests, **options)
    with pytest.raises(InvalidParameterError, match=words):
        abatch(None, requests, **options)


def test_nothing_to_do(run):
    assert run([]) == []


def test_progress_is_told_on_stderr_now_and_then(run, capsys, monkeypatch):
    monkeypatch.setattr("myllm.batch.progress._EVERY", 0.0)
    run(["a", "bad", "c"], progress=True)
    told = capsys.readouterr()
    assert told.out == ""
    last = told.err.splitlines()[-1]
    assert "3 of 3" in last
    assert "1 failed" in last


class TestLines:
    def test_the_id_names_the_request_as_it_stands(self):
        def id_of(text: bytes, number: int = 1, model: str | None = None) -> str:
            return read_line(text, number, model).id

        a = json.dumps(line("a", prompt="x")).encode()
        named = json.dumps(line("a", prompt="x", model="own")).encode()
        assert id_of(a + b"\n") == id_of(a + b"\r\n", 7) == id_of(b"  " + a)
        assert (
            len({id_of(a), id_of(a.replace(b'"x"', b'"y"')), id_of(a, model="m"), id_of(a, model="n")}) == 4
        )
        assert id_of(named, model="m") == id_of(named)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (b'{"custom_id": "a",}', "JSON.*column"),
            (b"[1]", "object"),
            (b'{"custom_id": 1}', "custom_id"),
            (b'{"custom_id": ""}', "custom_id"),
            (b'{"url": "/v1/completions"}', "custom_id"),
            (b'{"custom_id": "\xff"}', "UTF-8"),
            (b"[" * 100_000, "deep"),
        ],
    )
    def test_a_bad_line_says_where_and_what(self, text, words):
        read = read_line(text, 3, None)
        with pytest.raises(InvalidParameterError, match=f"Line 3 .*{words}"):
            raise read.error
        assert read.id != read_line(text, 4, None).id

    def test_a_byte_order_mark_is_no_error(self):
        assert read_line(b'\xef\xbb\xbf{"custom_id": "a"}', 1, None).error is None

    def test_the_output_has_openais_format(self, run):
        (good,), (bad,) = run(["hi"]), run(["bad"])
        asked = read_line(b'{"custom_id": "a"}', 5, None)
        written = success(asked, good.answer)
        assert written == {
            "id": asked.id,
            "custom_id": "a",
            "response": {"status_code": 200, "request_id": good.answer.request_id, "body": chat_body("hi")},
            "error": None,
        }
        failed = failure(asked, bad.error)
        assert failed["response"]["status_code"] == 400
        assert failed["response"]["body"] == {"error": {"message": "I don't like it"}}
        assert failed["error"]["code"] == "BadRequestError"
        assert failed["error"]["line"] == 5
        assert "I don't like it" in failed["error"]["message"]
        unsent = failure(asked, UnknownParameterError("Unknown parameter `x`."))
        assert (unsent["response"], unsent["error"]["code"]) == (None, "UnknownParameterError")


class TestClients:
    def test_a_clients_batch_has_its_settings(self, wire):
        wire.handler = echo
        with Client(wire.url, model="m", dialect="openai", api_key="k", temperature=0.5) as client:
            results = list(client.batch(["a", {"prompt": "b"}], max_tokens=3))
            assert [r.answer.text for r in results] == ["a", "b"]
            assert client.chat("still open").text == "still open"
        assert {seen.headers["authorization"] for seen in wire.seen} == {"Bearer k"}
        assert all((b["temperature"], b["max_tokens"]) == (0.5, 3) for b in wire.bodies[:2])

    async def test_an_async_clients_batch(self, wire):
        wire.handler = echo
        async with AsyncClient(wire.url, model="m", dialect="openai") as client:
            results = [r async for r in client.batch(["a", "bad", "c"], concurrency=2)]
        assert [r.answer and r.answer.text for r in results] == ["a", None, "c"]

    def test_what_the_cache_has_is_not_sent(self, wire, tmp_path):
        wire.handler = echo
        with Client(wire.url, model="m", dialect="openai", cache=tmp_path / "c", temperature=0) as client:
            requests = [str(i) for i in range(10)]
            assert not any(r.answer.cached for r in client.batch(requests))
            assert all(r.answer.cached for r in client.batch(requests))
        assert len(wire.seen) == 10


def test_fields_of_a_line_that_no_parameter_stands_for_are_sent_as_they_are(run, wire):
    fields = {"metadata": {"a": "b"}, "store": False, "structured_outputs": {"regex": "x+"}}
    (result,) = run([line(messages="x", **fields)], extra_body={"own": 1, "store": True})
    assert result.error is None
    assert {name: wire.bodies[0][name] for name in (*fields, "own")} == {**fields, "own": 1}


def test_a_list_of_one_prompt_is_that_prompt(run, wire):
    results = run(
        [
            line(url="/v1/completions", prompt=["once"]),
            line(url="/v1/completions", prompt=[[1, 2]]),
            line(url="/v1/completions", prompt=[1, 2]),
            line(url="/v1/completions", prompt=["a", "b"]),
        ],
        concurrency=1,
    )
    assert [body["prompt"] for body in wire.bodies] == ["once", [1, 2], [1, 2]]
    assert "a line of its own" in str(results[3].error)


def test_inputs_of_token_ids(run, wire):
    run([line(url="/v1/embeddings", input=[[1, 2], [3]]), {"input": [4, 5]}], concurrency=1)
    assert [body["input"] for body in wire.bodies] == [[[1, 2], [3]], [[4, 5]]]
    (result,) = run([{"input": [1, "x"]}])
    assert isinstance(result.error, InvalidParameterError)
