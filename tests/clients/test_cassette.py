"""Cassettes: what is written, and that replays need no server."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import json
import logging
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

import myllm
from myllm import CassetteMiss, tap
from myllm.cassette import Cassette
from myllm.transport.pool import PoolTransport

KEY = "sk-0123456789abcdef"
SUITE = """
import asyncio, sys
import myllm

with myllm.Cassette("hello.json"):
    with myllm.Client(sys.argv[1], temperature=0, max_tokens=8) as client:
        print(client.chat("What is the capital of France?").text)
        with client.stream_chat("Count to three.") as stream:
            print([chunk.text for chunk in stream], stream.final().usage)
        print(client.complete("Once upon a time").text, client.models()[0].id)

    async def main():
        async with myllm.AsyncClient(sys.argv[1], temperature=0, max_tokens=8) as client:
            answers = await asyncio.gather(*[client.chat(f"Say {word}.") for word in ("yes", "no", "yes")])
            print([answer.text for answer in answers])
            async with client.stream_complete("Roses are") as stream:
                print([chunk.text async for chunk in stream])

    asyncio.run(main())
"""


def answer(text: str = "Hi.", **more) -> dict:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], **more}


def event(text: str) -> str:
    chunk = {"id": "1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"


END = 'data: {"id": "1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "tape.json"


@pytest.fixture(autouse=True)
def nothing_left_active():
    yield
    assert tap.active is None


def client(wire, **options) -> myllm.Client:
    return myllm.Client(wire.url, **{"model": "m", "dialect": "openai", "max_retries": 0, **options})


def dead(**options) -> myllm.Client:
    """A client of a server that does not exist."""
    options = {"model": "m", "dialect": "openai", "max_retries": 0, **options}
    return myllm.Client("http://127.0.0.1:1", **options)


def test_a_suite_runs_again_with_the_server_stopped(tmp_path):
    def run(url: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SUITE, url], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with myllm.Server("smollm2") as server:
        first = run(server.url)
    before = (tmp_path / "hello.json").read_bytes()
    assert run(server.url) == run("http://elsewhere.invalid:1234") == first
    assert "Paris" in first
    assert (tmp_path / "hello.json").read_bytes() == before


def test_the_file_holds_request_and_reply_and_can_be_read(wire, path):
    wire.answers(answer("Grüße", floats=[0.1, -2, 3e-9]))
    with Cassette(path), client(wire) as asking:
        asking.chat("Hallo", temperature=0.5)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {
        "myllm_cassette": 1,
        "exchanges": [
            {
                "request": {
                    "method": "POST",
                    "path": "/v1/chat/completions",
                    "json": {
                        "model": "m",
                        "messages": [{"role": "user", "content": "Hallo"}],
                        "temperature": 0.5,
                    },
                },
                "response": {
                    "status": 200,
                    "headers": {"content-type": "application/json"},
                    "json": answer("Grüße", floats=[0.1, -2, 3e-9]),
                },
            }
        ],
    }
    assert "Grüße" in text
    assert '"floats": [0.1, -2, 3e-09]' in text
    assert text.endswith("}\n")


def test_streams_replay_in_the_pieces_that_came(wire, path):
    smile = event("🙂").encode()
    cut = smile.index("🙂".encode()) + 2  # in the middle of the character
    pieces = [event("a") + event("b"), smile[:cut], smile[cut:], END]
    wire.streams(*pieces)

    def run(asking):
        with asking.stream_chat("x") as stream:
            return [chunk.text for chunk in stream], stream.final().text

    with Cassette(path), client(wire) as asking:
        first = run(asking)
    with Cassette(path, "replay"), dead() as asking:
        assert run(asking) == first == (["a", "b", "🙂", ""], "ab🙂")
    http = httpx.Client(transport=PoolTransport("http://127.0.0.1:1"))
    sent = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with Cassette(path, "replay"), http.stream("POST", "http://pool/v1/chat/completions", json=sent) as reply:
        assert list(reply.iter_raw()) == [
            piece if isinstance(piece, bytes) else piece.encode() for piece in pieces
        ]


def test_pace_slows_a_stream_down(wire, path):
    wire.streams(event("a"), event("b"), END)
    with Cassette(path), client(wire) as asking, asking.stream_chat("x") as stream:
        list(stream)
    with Cassette(path, pace=0.05), dead() as asking, asking.stream_chat("x") as stream:
        started = time.monotonic()
        next(stream)
        first = time.monotonic() - started
        list(stream)
        assert 0.04 < first < 0.14 < time.monotonic() - started


async def test_async_streams_pace_and_let_others_run(wire, path):
    wire.streams(event("a"), event("b"), END)
    with Cassette(path):
        async with myllm.AsyncClient(wire.url, model="m", dialect="openai") as asking:
            async with asking.stream_chat("x") as stream:
                assert [chunk.text async for chunk in stream] == ["a", "b", ""]
    with Cassette(path, pace=0.05):
        async with myllm.AsyncClient("http://127.0.0.1:1", model="m", dialect="openai") as asking:

            async def read():
                async with asking.stream_chat("x") as stream:
                    return [chunk.text async for chunk in stream]

            started = time.monotonic()
            assert await asyncio.gather(*[read() for _ in range(10)]) == [["a", "b", ""]] * 10
            assert 0.14 < time.monotonic() - started < 1


def test_same_requests_replay_in_order_and_then_the_last_again(wire, path):
    wire.answers(answer("1"), answer("2"))
    with Cassette(path), client(wire) as asking:
        assert [asking.chat("x").text for _ in range(2)] == ["1", "2"]
    with Cassette(path), dead() as asking:
        assert [asking.chat("x").text for _ in range(4)] == ["1", "2", "2", "2"]
    with Cassette(path), dead() as asking:
        assert asking.chat("x").text == "1"


def test_refusals_are_recorded_and_retried_like_real_ones(wire, path):
    statuses = [503, 200]

    def handler(seen, reply):
        status = statuses.pop(0)
        reply.json(
            answer() if status == 200 else {"error": {"message": "busy"}}, status, {"Retry-After": "0.01"}
        )

    wire.handler = handler
    with Cassette(path), client(wire, max_retries=1) as asking:
        assert asking.chat("x").text == "Hi."
    with Cassette(path), dead(max_retries=1) as asking:
        assert asking.chat("x").text == "Hi."
    with (
        Cassette(path),
        dead(max_retries=0) as asking,
        pytest.raises(myllm.OverloadedError, match="busy") as caught,
    ):
        asking.chat("x")
    assert caught.value.retry_after == 0.01


def test_what_was_not_recorded_is_shown_beside_the_nearest_that_was(wire, path):
    wire.answers(answer())
    with Cassette(path), client(wire) as asking:
        asking.chat("Hello", temperature=0.5, stop=["a"])
        asking.chat("Something else", max_tokens=3, seed=4)
    with Cassette(path, "replay"), client(wire) as asking:
        with pytest.raises(CassetteMiss) as caught:
            asking.chat("Hullo", temperature=0.5, presence_penalty=1)
    message = str(caught.value)
    assert "exchange 1 of 2" in message
    assert "`body.messages[0].content` is 'Hello' in the cassette, and was sent as 'Hullo'" in message
    assert "`body.stop` is ['a'] in the cassette, and was not sent" in message
    assert "`body.presence_penalty` is not in the cassette, and was sent as 1.0" in message
    assert 'mode="append"' in message
    assert isinstance(caught.value, myllm.MyLLMError)
    assert len(wire.seen) == 2


def test_replaying_without_a_file_says_how_to_record_one(path):
    with Cassette(path, "replay"), myllm.Client("http://localhost:9", model="m", dialect="vllm") as client:
        with pytest.raises(CassetteMiss, match="MYLLM_CASSETTE_MODE=record"):
            client.chat("x")


def test_what_asks_nothing_needs_no_cassette(path):
    with Cassette(path, "replay"):
        pass
    assert not path.exists()


def test_append_keeps_what_is_there_and_records_the_rest(wire, path):
    wire.answers(answer("old"), answer("new"))
    with Cassette(path), client(wire) as asking:
        asking.chat("a")
    with Cassette(path, "append"), client(wire) as asking:
        assert [asking.chat("a").text, asking.chat("b").text] == ["old", "new"]
    with Cassette(path, "replay"), dead() as asking:
        assert [asking.chat("b").text, asking.chat("a").text] == ["new", "old"]
    assert len(wire.seen) == 2


def test_record_begins_anew(wire, path):
    wire.answers(answer("old"), answer("new"))
    for _ in range(2):
        with Cassette(path, "record"), client(wire) as asking:
            asking.chat("a")
    with Cassette(path), dead() as asking:
        assert asking.chat("a").text == "new"
    assert len(json.loads(path.read_text())["exchanges"]) == 1


@pytest.mark.parametrize(("mode", "seen"), [("replay", 1), ("record", 2), ("append", 1)])
def test_the_environment_overrides_the_mode(wire, path, monkeypatch, mode, seen):
    wire.answers(answer())
    with Cassette(path), client(wire) as asking:
        asking.chat("a")
    monkeypatch.setenv("MYLLM_CASSETTE_MODE", mode)
    with Cassette(path, "auto"), client(wire) as asking:
        asking.chat("a")
    assert len(wire.seen) == seen


def test_bad_arguments_and_files(path, monkeypatch, tmp_path):
    with pytest.raises(myllm.InvalidParameterError, match="'auto', 'replay', 'record', 'append'"):
        Cassette(path, "rewind")
    with pytest.raises(myllm.InvalidParameterError, match="pace"):
        Cassette(path, pace=-1)
    monkeypatch.setenv("MYLLM_CASSETTE_MODE", "all")
    with pytest.raises(myllm.InvalidParameterError, match="MYLLM_CASSETTE_MODE"), Cassette(path):
        pass
    monkeypatch.delenv("MYLLM_CASSETTE_MODE")
    for content, words in [
        ("{", "no cassette"),
        ("[]", "no cassette"),
        ('{"myllm_cassette": 2, "exchanges": []}', "format 2"),
    ]:
        file = tmp_path / "bad.json"
        file.write_text(content)
        with pytest.raises(myllm.InvalidParameterError, match=words), Cassette(file):
            pass


def test_requests_that_differ_where_it_does_not_count_are_the_same(wire, path):
    wire.answers(answer())
    with Cassette(path, ignore=["user"]), client(wire) as asking:
        asking.chat("It is 10:00.", user="anna")

    def without_text(body):
        body.pop("messages")
        return body

    with Cassette(path, ignore=["user"]), dead() as asking:
        assert asking.chat("It is 10:00.", user="bert").text == "Hi."
        assert asking.chat("It is 10:00.").text == "Hi."
        with pytest.raises(CassetteMiss):
            asking.chat("It is 11:00.")
    with Cassette(path, ignore="user", normalize=without_text), dead() as asking:
        assert asking.chat("It is 11:00.").text == "Hi."
        with pytest.raises(CassetteMiss, match=r"`body.temperature`"):
            asking.chat("It is 11:00.", temperature=1)


def test_no_escape_and_no_login_brings_a_secret_into_the_file(wire, path):
    key, login = 'pk/abc"def&12345', base64.b64encode(b"ann:hunter2secret").decode()
    said = json.dumps(f"{key}, hunter2secret").replace("/", "\\/").replace("&", "\\u0026")
    chunk = '{"choices": [{"delta": {"content": SAID}, "finish_reason": "stop"}]}'.replace("SAID", said)
    wire.streams(f"data: {chunk}\n\n", END)
    with (
        Cassette(path),
        client(wire, headers={"Authorization": f"Basic {login}", "X-Api-Key": key}) as asking,
    ):
        assert asking.stream_chat("x").final().text == f"{key}, hunter2secret"
    with Cassette(path), dead() as asking:
        assert asking.stream_chat("x").final().text == "[secret], [secret]"
    assert not [word for word in ("12345", "hunter2", login) if word in path.read_text()]


def test_no_secret_comes_into_the_file(wire, path):
    def handler(seen, reply):
        if seen.body.get("stream"):
            reply.start_stream()
            whole = event(f"key {KEY} end")
            cut = whole.index(KEY) + 5  # the key comes in two pieces
            for piece in (whole[:cut], whole[cut:], END):
                reply.piece(piece)
            reply.end_stream()
        else:
            echoed = {"Set-Cookie": "session=c00kie-value", "X-Echo": KEY}
            reply.json({"error": {"message": f"Wrong key {KEY!r}, {seen.headers}"}}, 401, echoed)

    wire.handler = handler
    options = {"headers": {"X-Api-Token": "tok/en-987654", "Cookie": "monster=yes-it-is"}, "api_key": KEY}
    with Cassette(path, secrets=["Wolpertinger"]), client(wire, **options) as asking:
        with pytest.raises(myllm.AuthenticationError):
            asking.chat(f"My key is {KEY}, my dog is Wolpertinger.")
        with asking.stream_chat("x") as stream:
            assert stream.final().text == f"key {KEY} end"
    text = path.read_text()
    for secret in (KEY, "tok/en-987654", "tok\\/en", "monster", "c00kie", "Wolpertinger", "Authorization"):
        assert secret not in text, secret
    assert wire.seen[1].headers["x-request-id"] not in text
    assert "My key is [secret], my dog is [secret]." in text
    with Cassette(path), dead() as asking:  # another key, or none, replays too
        with pytest.raises(myllm.AuthenticationError, match=r"Wrong key '\[secret\]'"):
            asking.chat(f"My key is {KEY}, my dog is Wolpertinger.")
        with asking.stream_chat("x") as stream:
            assert stream.final().text == "key [secret] end"
    with Cassette(path), dead(api_key=KEY) as asking, pytest.raises(CassetteMiss) as caught:
        asking.chat(f"Your key is {KEY}")
    assert KEY not in str(caught.value)


def test_basic_authentication_stays_out_too(wire, path):
    wire.handler = lambda seen, reply: reply.json(answer(str(seen.headers["authorization"])))
    http = myllm.HTTPOptions(auth=("anna", "correct horse"))
    with Cassette(path), client(wire, http=http) as asking:
        echoed = asking.chat("correct horse").text.removeprefix("Basic ")
    assert len(echoed) > 10
    assert echoed not in path.read_text()
    assert "correct horse" not in path.read_text()


def test_failed_connections_are_not_recorded(wire, path):
    hang_up = [True]

    def handler(seen, reply):
        if hang_up.pop(0) if hang_up else False:
            reply.hang_up()
        else:
            reply.json(answer())

    wire.handler = handler
    with Cassette(path), client(wire, max_retries=1) as asking:
        asking.chat("x")
    assert len(json.loads(path.read_text())["exchanges"]) == 1


def test_a_stream_that_broke_is_not_recorded(wire, path):
    def handler(seen, reply):
        reply.start_stream()
        reply.piece(event("a"))
        reply.hang_up()

    wire.handler = handler
    with Cassette(path), client(wire) as asking, pytest.raises(myllm.IncompleteStreamError):
        asking.stream_chat("x").final()
    assert not path.exists()


def test_a_stream_closed_early_replays_as_far_as_it_came(wire, path):
    gone = threading.Event()

    def handler(seen, reply):
        reply.start_stream()
        for _ in range(500):
            reply.piece(event("a"))
            time.sleep(0.01)
        gone.set()

    wire.handler = handler
    with Cassette(path), client(wire) as asking, asking.stream_chat("x") as stream:
        assert [next(stream).text, next(stream).text] == ["a", "a"]
    assert json.loads(path.read_text())["exchanges"][0]["response"]["closed_early"] is True
    assert not gone.is_set()
    with Cassette(path), dead() as asking:
        with asking.stream_chat("x") as stream:
            assert [next(stream).text, next(stream).text] == ["a", "a"]
        with (
            pytest.raises(CassetteMiss, match="its reader left here") as caught,
            asking.stream_chat("x") as stream,
        ):
            list(stream)
    assert caught.value.partial.text == "aa"


def test_every_thread_is_recorded_and_replayed(wire, path):
    wire.handler = lambda seen, reply: reply.json(answer(seen.body["messages"][0]["content"].upper()))
    words = [f"word {number}" for number in range(32)]

    def run(asking):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda word: asking.chat(word).text, words))

    with Cassette(path), client(wire) as asking:
        assert run(asking) == [word.upper() for word in words]
    with Cassette(path), dead() as asking:
        assert run(asking) == [word.upper() for word in words]
    assert len(wire.seen) == 32


def test_frameworks_over_the_pool_are_recorded_too(wire, path):
    wire.answers(answer("from openai"))

    def run(url):
        http = httpx.Client(transport=PoolTransport(url))
        sdk = openai.OpenAI(base_url="http://pool/v1", api_key=KEY, http_client=http, max_retries=0)
        return sdk.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])

    with Cassette(path):
        first = run(wire.url)
    with Cassette(path):
        assert run("http://127.0.0.1:1") == first
    assert first.choices[0].message.content == "from openai"
    assert KEY not in path.read_text()


def test_each_cassette_is_complete_whatever_a_client_knew_before(server, path, tmp_path):
    other = tmp_path / "other.json"
    with server.client(temperature=0, max_tokens=4) as asking:
        asking.chat("warm up")  # the client knows model and dialect by now
        for file in (path, other):
            with Cassette(file):
                asking.chat("Hello")
    for file in (other, path):
        with (
            Cassette(file, "replay"),
            myllm.Client("http://127.0.0.1:1", temperature=0, max_tokens=4) as asking,
        ):
            assert asking.chat("Hello").text


def test_clients_return_to_the_network_afterwards(wire, path):
    wire.answers(answer("recorded"), answer("live"))
    with client(wire) as asking:
        with Cassette(path):
            asking.chat("x")
        assert asking.chat("x").text == "live"
        with Cassette(path):
            assert asking.chat("x").text == "recorded"
    assert len(wire.seen) == 2


def test_the_innermost_cassette_counts(wire, path, tmp_path):
    wire.answers(answer("outer"), answer("inner"))
    with client(wire) as asking, Cassette(path):
        asking.chat("a")
        with Cassette(tmp_path / "inner.json"):
            asking.chat("b")
    assert "inner" not in path.read_text()
    assert "outer" not in (tmp_path / "inner.json").read_text()


def test_nothing_is_written_after_an_exception(wire, path, caplog):
    wire.answers(answer())
    with pytest.raises(ZeroDivisionError), Cassette(path), client(wire) as asking:
        asking.chat("x")
        raise ZeroDivisionError
    assert not path.exists()
    assert "not written" in caplog.text
    assert [record.levelno for record in caplog.records if "not written" in record.message] == [
        logging.WARNING
    ]


def test_a_block_that_asks_nothing_writes_nothing(path):
    with Cassette(path):
        pass
    assert not path.exists()


def test_writing_is_all_or_nothing(wire, path, monkeypatch):
    wire.answers(answer())
    with Cassette(path), client(wire) as asking:
        asking.chat("x")
    before = path.read_bytes()
    monkeypatch.setattr("os.fdopen", lambda *args: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"), Cassette(path, "record"), client(wire) as asking:
        asking.chat("y")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_decorated_functions_run_inside(wire, path, tmp_path):
    wire.answers(answer("one"))

    @Cassette(path)
    def test_something(url, *, question="x"):
        with myllm.Client(url, model="m", dialect="openai") as asking:
            return asking.chat(question).text

    @Cassette(tmp_path / "async.json")
    async def test_something_async(url):
        async with myllm.AsyncClient(url, model="m", dialect="openai") as asking:
            return (await asking.chat("x")).text

    for url in (wire.url, "http://127.0.0.1:1"):
        assert test_something(url) == "one"
        assert asyncio.run(test_something_async(url)) == "one"
    assert test_something.__name__ == "test_something"
    assert len(wire.seen) == 2

    def fixture():
        yield

    with pytest.raises(myllm.InvalidParameterError, match="inside it with `with`"):
        Cassette(path)(fixture)


def test_health_probes_leave_the_network_alone(wire, path):
    wire.answers(answer())
    with Cassette(path), client(wire) as asking:
        asking.chat("x")
    with Cassette(path), client(wire, health_interval=0.02) as asking:
        asking.chat("x")
        time.sleep(0.15)
    assert [seen.path for seen in wire.seen] == ["/v1/chat/completions"]


def test_binary_and_broken_bodies_come_back_as_they_were(wire, path):
    bodies = [b"\xff\x00\xfe", b'{"a": NaN}', b'{"cut', b"", b'{"a": 1e999}', b"plain"]
    left = list(bodies)
    wire.handler = lambda seen, reply: reply.raw(left.pop(0), 200, {"Content-Type": "application/json"})
    for url, file in ((wire.url, path), ("http://127.0.0.1:1", path)):
        with Cassette(file), httpx.Client(transport=PoolTransport(url)) as http:
            assert [http.get("http://pool/v1/x").content for _ in bodies] == bodies


def test_half_a_surrogate_pair_comes_back(wire, path):
    wire.answers(answer("half \ud83d"))
    with Cassette(path), client(wire) as asking:
        assert asking.chat("x").text == "half \ud83d"
    path.read_text(encoding="utf-8")  # it is text for every reader
    with Cassette(path), dead() as asking:
        assert asking.chat("x").text == "half \ud83d"


def test_the_user_s_own_word_for_a_secret_stands_for_nothing_else(wire, path):
    wire.answers(answer())
    with Cassette(path), client(wire) as asking:
        asking.chat("What is a [secret]?")
    with Cassette(path), dead() as asking:
        assert asking.chat("What is a [secret]?").text == "Hi."
        with pytest.raises(CassetteMiss):
            asking.chat("What is a cat?")


def test_masks_stay_masks_when_more_is_recorded(wire, path):
    wire.answers(answer("one"), answer("two"))
    with Cassette(path, secrets=["Wolpertinger"]), client(wire) as asking:
        asking.chat("My dog is Wolpertinger.")
    with Cassette(path, "append"), client(wire) as asking:
        asking.chat("more")
    with Cassette(path), dead() as asking:
        assert asking.chat("My dog is Rex.").text == "one"
