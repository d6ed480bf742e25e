from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import pickle
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest

from myllm import AsyncClient, Client
from myllm.cache import Cache, cache_key, dump, is_cacheable, is_complete, load
from myllm.errors import InvalidParameterError, ServerError
from myllm.params import build
from myllm.types import ChatCompletion, Completion
from myllm.wire import Call, Timeout

HELLO = [{"role": "user", "content": "Hello"}]


def chat(messages=HELLO, model="m", extra=None, headers=None, timeout=None, stream=False, **params) -> Call:
    return Call(
        kind="chat",
        model=model,
        messages=messages,
        params=build(params),
        extra_body=extra or {},
        extra_headers=headers or {},
        timeout=timeout or Timeout(),
        stream=stream,
    )


def completed(finish_reason="stop", **fields) -> ChatCompletion:
    raw = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m",
        "system_fingerprint": "fp",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Hé"}, "finish_reason": finish_reason}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        **fields,
    }
    answer = ChatCompletion.model_validate(raw)
    answer._raw, answer._request_id, answer._endpoint = raw, "req-1", "http://a:1"
    return answer


class TestKey:
    def test_what_decides_nothing_is_not_in_the_key(self):
        same = chat(
            temperature=0, headers={"Authorization": "Bearer secret"}, timeout=Timeout.of(1), stream=True
        )
        assert cache_key(chat(temperature=0)) == cache_key(same)

    def test_names_of_one_parameter_and_the_order_of_names_are_one_key(self):
        turned = [{"content": "Hello", "role": "user"}]
        assert cache_key(chat(max_tokens=5, seed=1)) == cache_key(chat(turned, seed=1, max_new_tokens=5))
        assert cache_key(chat(extra={"a": 1, "b": 2})) == cache_key(chat(extra={"b": 2, "a": 1}))
        nested, also = {"x": {"a": 1, "b": 2}}, {"x": {"b": 2, "a": 1}}
        assert cache_key(chat(extra=nested)) == cache_key(chat(extra=also))
        assert cache_key(chat(logit_bias={5: 1, 40: 2})) == cache_key(chat(logit_bias={40: 2, 5: 1}))

    def test_whatever_decides_the_answer_is_in_the_key(self):
        def schema(*names: str) -> dict:
            return {"type": "json_schema", "json_schema": {"properties": {name: {} for name in names}}}

        calls = [
            chat(),
            chat(model="other"),
            chat([{"role": "user", "content": "Hello!"}]),
            chat([{"role": "system", "content": "Hello"}]),
            chat(HELLO * 2),
            chat(temperature=0),
            chat(temperature=0.5),
            chat(seed=0),
            chat(max_tokens=5),
            chat(extra={"x": 1}),
            # a schema's properties are generated in their order
            chat(response_format=schema("a", "b")),
            chat(response_format=schema("b", "a")),
            chat(extra={"guided_json": schema("a", "b")["json_schema"]}),
            chat(extra={"guided_json": schema("b", "a")["json_schema"]}),
            Call(kind="completion", model="m", params=build({}), prompt="Hello"),
            Call(kind="completion", model="m", params=build({}), prompt=[1, 2]),
            Call(kind="tokenize", model="m", params=build({}), prompt="Hello"),
            Call(kind="embedding", model="m", params=build({}), inputs=["Hello"]),
            Call(kind="embedding", model="m", params=build({}), inputs=["Hello", ""]),
        ]
        assert len({cache_key(call) for call in calls}) == len(calls)

    def test_a_key_is_the_same_in_another_process(self):
        code = (
            "from myllm.cache import cache_key; from myllm.params import build; from myllm.wire import Call\n"
            "print(cache_key(Call(kind='completion', model='m', prompt='Hi', "
            "params=build({'logit_bias': {7: 1}, 'seed': 3}))))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        here = Call(
            kind="completion", model="m", prompt="Hi", params=build({"logit_bias": {7: 1}, "seed": 3})
        )
        assert done.stdout.strip() == cache_key(here)

    def test_what_is_no_json_is_named(self):
        with pytest.raises(InvalidParameterError, match="JSON"):
            cache_key(chat(extra={"when": object()}))


def test_greedy_and_seeded_calls_are_cacheable_and_others_when_asked():
    assert is_cacheable(chat(temperature=0), sampled=False)
    assert is_cacheable(chat(do_sample=False), sampled=False)
    assert is_cacheable(chat(seed=0, temperature=1), sampled=False)
    assert not is_cacheable(chat(temperature=0.1), sampled=False)
    assert not is_cacheable(chat(), sampled=False)
    assert is_cacheable(chat(), sampled=True)
    assert is_cacheable(Call(kind="embedding", model="m", params=build({}), inputs=["x"]), sampled=False)
    assert is_cacheable(Call(kind="tokenize", model="m", params=build({}), prompt="x"), sampled=False)


def test_a_call_without_a_model_is_not_cacheable():
    assert not is_cacheable(chat(model=None, temperature=0), sampled=True)


@pytest.mark.parametrize(
    ("reason", "complete"),
    [
        ("stop", True),
        ("length", True),
        ("tool_calls", True),
        ("abort", False),
        ("error", False),
        (None, False),
    ],
)
def test_only_finished_answers_are_complete(reason, complete):
    assert is_complete(completed(reason)) is complete


def test_one_unfinished_choice_makes_an_answer_incomplete():
    answer = completed()
    answer.choices.append(answer.choices[0].model_copy(update={"index": 1, "finish_reason": None}))
    assert not is_complete(answer)
    assert not is_complete(ChatCompletion())


def test_an_answer_comes_back_as_it_was_but_for_the_mark():
    answer = completed()
    back = load("chat", dump(answer))
    assert back.model_dump() == answer.model_dump()
    assert (back.raw, back.request_id, back.endpoint) == (answer.raw, "req-1", "http://a:1")
    assert back.text == "Hé"
    assert back.usage.total_tokens == 4
    assert back.system_fingerprint == "fp"
    assert (answer.cached, back.cached) == (False, True)


def test_infinite_log_probabilities_survive():
    token = {"token": "a", "logprob": float("-inf")}
    answer = Completion.model_validate(
        {"choices": [{"text": "a", "finish_reason": "stop", "logprobs": {"content": [token]}}]}
    )
    back = load("completion", dump(answer))
    assert back.choices[0].logprobs.content[0].logprob == float("-inf")


@pytest.mark.parametrize("stored", [b"", b"garbage", dump(completed())[:-9]])
def test_a_damaged_answer_is_a_value_error(stored):
    with pytest.raises(ValueError, match="damaged"):
        load("chat", stored)


@pytest.fixture(params=["memory", "file"])
def cache(request, tmp_path):
    with Cache(tmp_path / "c.sqlite3" if request.param == "file" else None) as cache:
        yield cache


class TestStore:
    def test_put_get_delete_clear(self, cache):
        assert cache.get("k") is None
        cache.put("k", b"one")
        cache.put("k", b"two")
        cache.put("l", b"x")
        assert (cache.get("k"), cache.peek("k"), len(cache)) == (b"two", b"two", 2)
        cache.delete("k")
        cache.delete("never there")
        assert (cache.get("k"), len(cache)) == (None, 1)
        cache.clear()
        assert (cache.get("l"), cache.peek("l"), len(cache), cache.stats().bytes) == (None, None, 0, 0)

    def test_stats_count_hits_misses_and_bytes(self, cache):
        cache.put("key", b"12345")
        cache.put("key", b"123")
        cache.get("key")
        cache.peek("key")
        cache.get("other")
        cache.peek("other")  # a `get` follows, which counts
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.entries, stats.bytes) == (2, 1, 1, 6)

    def test_an_empty_cache_is_true(self, cache):
        assert cache

    def test_the_least_recently_used_leave_first_and_the_size_holds(self, tmp_path, request):
        for path in (None, tmp_path / "c.sqlite3"):
            with Cache(path, max_bytes=10 * 1001) as cache:
                for i in range(10):
                    cache.put(str(i), bytes(1000))
                cache.get("0")
                cache.put("a", bytes(1000))
                cache.put("b", bytes(1000))
                left = [k for k in "0123456789ab" if cache.get(k) is not None]
                assert left == list("03456789ab"), path
                assert cache.stats().bytes <= 10 * 1001
                cache.put("huge", bytes(20_000))
                assert cache.get("huge") is None
                assert len(cache) == 10

    def test_stale_entries_are_misses(self, tmp_path):
        for path in (None, tmp_path / "c.sqlite3"):
            with Cache(path, ttl=0.05, memory_items=8) as cache:
                cache.put("k", b"v")
                assert cache.get("k") == b"v"
                time.sleep(0.06)
                assert cache.get("k") is None
                assert cache.peek("k") is None
                cache.put("k", b"w")
                assert cache.get("k") == b"w"

    @pytest.mark.parametrize(
        "wrong", [{"max_bytes": 0}, {"memory_items": -1}, {"ttl": 0}, {"max_bytes": True}]
    )
    def test_wrong_numbers_are_named(self, wrong):
        with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
            Cache(**wrong)


class TestFile:
    def test_another_instance_finds_the_entry_and_memory_holds_it_from_then_on(self, tmp_path):
        with Cache(tmp_path / "deep" / "c.sqlite3") as one, Cache(tmp_path / "deep" / "c.sqlite3") as two:
            one.put("k", b"v")
            assert two.peek("k") is None
            assert two.get("k") == b"v"
            assert two.peek("k") == b"v"

    def test_only_its_owner_can_read_it(self, tmp_path):
        path = tmp_path / "folder" / "c.sqlite3"
        with Cache(path) as cache:
            cache.put("k", b"v")
            modes = {
                stat.S_IMODE(file.stat().st_mode)
                for file in path.parent.glob("c.sqlite3*")
                if file.suffix != ".lock"
            }
        assert modes == {0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    def test_it_outlives_a_close(self, tmp_path):
        cache = Cache(tmp_path / "c", memory_items=0)
        cache.put("k", b"v")
        cache.close()
        cache.close()
        assert cache.get("k") == b"v"
        cache.close()

    def test_nothing_is_opened_before_the_first_use(self, tmp_path):
        Cache(tmp_path / "c").close()
        assert not list(tmp_path.iterdir())

    def test_memory_is_bounded_over_a_large_file(self, tmp_path):
        with Cache(tmp_path / "c", memory_items=2) as cache:
            tracemalloc.start()
            for i in range(200):
                cache.put(str(i), os.urandom(50_000))
            used, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert used < 1_000_000
            assert len(cache) == 200

    def test_a_damaged_file_is_moved_aside_with_a_warning(self, tmp_path, caplog):
        path = tmp_path / "c"
        path.write_bytes(b"no database at all " * 100)
        with Cache(path) as cache:
            cache.put("k", b"v")
            assert Cache(path).get("k") == b"v"
        (aside,) = tmp_path.glob("c.damaged-*")
        assert aside.read_bytes().startswith(b"no database")
        assert str(aside) in caplog.text

    def test_damage_in_the_middle_is_found_too(self, tmp_path, caplog):
        path = tmp_path / "c"
        with Cache(path) as cache:
            for i in range(200):
                cache.put(f"{i:064}", bytes(2000))
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xff" * (len(data) - 4096)
        path.write_bytes(data)
        with Cache(path) as cache:
            assert cache.get(f"{3:064}") is None
            cache.put("k", b"v")
        assert Cache(path).get("k") == b"v"
        assert len(list(tmp_path.glob("c.damaged-*"))) == 1

    def test_anothers_database_is_left_alone(self, tmp_path, caplog):
        path = tmp_path / "mine.db"
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE precious (x)")
        before = path.read_bytes()
        with Cache(path) as cache:
            cache.put("k", b"v")
            cache.put("l", b"v")
            assert cache.get("k") == b"v"  # out of memory
        assert path.read_bytes() == before
        assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
        assert "another program" in caplog.text

    def test_a_file_of_another_schema_is_left_alone(self, tmp_path, caplog):
        path = tmp_path / "c"
        with Cache(path) as cache:
            cache.put("k", b"v")
        db = sqlite3.connect(path)
        db.execute("PRAGMA user_version = 99")
        db.close()
        with Cache(path) as cache:
            assert cache.get("k") is None
        assert "another version" in caplog.text

    def test_a_folder_that_cannot_be_made_is_one_warning(self, tmp_path, caplog):
        (tmp_path / "file").write_text("")
        with Cache(tmp_path / "file" / "c") as cache:
            for i in range(3):
                cache.put(str(i), b"v")
            assert cache.get("0") == b"v"
            assert cache.get("9") is None
            assert len(cache) == 0
        assert len(caplog.records) == 1

    def test_a_full_disk_is_a_warning_and_reading_goes_on(self, tmp_path, caplog):
        # A limit on the size of files makes every write past it fail, as a full disk does.
        code = f"""
import logging, os, resource, signal
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
from myllm.cache import Cache
cache = Cache({str(tmp_path / "c")!r}, memory_items=0)
cache.put("before", b"v")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for i in range(20):
    cache.put(str(i), os.urandom(50_000))
assert cache.get("before") == b"v", "lost"
assert cache.get("19") is None
print("done")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == "done\n"
        warnings = [line for line in done.stderr.splitlines() if "WARNING myllm.cache" in line]
        assert 1 <= len(warnings) <= 2, done.stderr
        with Cache(tmp_path / "c") as cache:
            assert cache.get("before") == b"v"

    def test_threads_share_one_instance(self, tmp_path):
        cache = Cache(tmp_path / "c", memory_items=3)
        wrong = []

        def work(n: int) -> None:
            for i in range(50):
                cache.put(f"{n}-{i}", f"{n}-{i}".encode())
                if cache.get(f"{n}-{i}") != f"{n}-{i}".encode():
                    wrong.append((n, i))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(cache) == 400
        cache.close()

    def test_processes_that_begin_at_once_share_one_file(self, tmp_path):
        code = (
            "import logging, sys; logging.basicConfig()\n"
            "from myllm.cache import Cache\n"
            "cache = Cache(sys.argv[1], memory_items=0)\n"
            "for i in range(100): cache.put(f'{sys.argv[2]}-{i}', b'v')\n"
            "assert all(cache.get(f'{sys.argv[2]}-{i}') == b'v' for i in range(100))"
        )
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "c"), str(n)], stderr=subprocess.PIPE
            )
            for n in range(4)
        ]
        for process in running:
            _, stderr = process.communicate()
            assert (process.returncode, stderr) == (0, b"")
        assert len(Cache(tmp_path / "c")) == 400

    def test_a_file_that_another_one_is_just_making_is_no_stranger(self, tmp_path, caplog):
        for round_ in range(40):
            path, ready = tmp_path / str(round_), threading.Barrier(6)
            caches = [Cache(path, memory_items=0) for _ in range(6)]

            def begin(number: int) -> None:
                ready.wait()  # noqa: B023
                caches[number].put(f"{number}", b"v")  # noqa: B023

            threads = [threading.Thread(target=begin, args=(n,)) for n in range(6)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (caplog.text, len(caches[0])) == ("", 6)
            for cache in caches:
                cache.close()

    def test_sqlite_s_name_for_memory_makes_no_file(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cache = Cache(":memory:", memory_items=5)
        cache.put("k", b"v")
        assert cache.get("k") == b"v"
        assert cache.path is None
        assert list(tmp_path.iterdir()) == []

    def test_a_forked_child_uses_a_connection_of_its_own(self, tmp_path):
        cache = Cache(tmp_path / "c")
        cache.put("parent", b"p")
        cache._lock.acquire()  # as another thread of the parent might at this moment
        try:
            pid = os.fork()
            if pid == 0:
                ok = cache.get("parent") == b"p"
                cache.put("child", b"c")
                os._exit(0 if ok else 1)
        finally:
            cache._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert cache.get("child") == b"c"
        cache.put("after", b"a")
        assert Cache(tmp_path / "c").get("after") == b"a"

    def test_a_copy_is_the_cache_and_a_pickle_its_settings(self, tmp_path):
        cache = Cache(tmp_path / "c", ttl=60, sampled=True, memory_items=5, max_bytes=10_000)
        cache.put("k", b"v")
        assert copy.deepcopy({"cache": cache})["cache"] is copy.copy(cache) is cache
        twin = pickle.loads(pickle.dumps(cache))
        assert (twin.ttl, twin.sampled, twin.memory_items, twin.max_bytes) == (60, True, 5, 10_000)
        assert twin.get("k") == b"v"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(Cache.get, (cache, "k")) == b"v"


class TestDefault:
    def test_the_folder_comes_from_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert Cache.default().path == tmp_path / "home/.cache/myllm/answers.sqlite3"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert Cache.default().path == tmp_path / "xdg/myllm/answers.sqlite3"
        monkeypatch.setenv("MYLLM_CACHE_DIR", str(tmp_path / "own"))
        assert Cache.default().path == tmp_path / "own/answers.sqlite3"
        assert Cache.default() is Cache.default()

    def test_what_a_user_may_give(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MYLLM_CACHE_DIR", str(tmp_path))
        cache = Cache()
        assert Cache.of(cache) is cache
        assert Cache.of(True) is Cache.default()
        assert Cache.of(None) is None
        assert Cache.of(False) is None
        assert Cache.of(str(tmp_path / "x")).path == Path(tmp_path / "x")
        with pytest.raises(InvalidParameterError, match="cache"):
            Cache.of(7)


def test_nothing_secret_is_stored(tmp_path):
    call = chat(temperature=0, headers={"Authorization": "Bearer sk-secret"})
    with Cache(tmp_path / "c") as cache:
        cache.put(cache_key(call), dump(completed()))
        ((key, value),) = sqlite3.connect(tmp_path / "c").execute("SELECT key, value FROM entries")
    assert "secret" not in key
    assert b"secret" not in zlib.decompress(value)


class TestClients:
    """What a user sees of it."""

    @pytest.fixture
    def answering(self, wire):
        wire.answers(completed().raw)
        return wire

    def test_an_answer_is_asked_for_once(self, answering, tmp_path):
        cache = Cache(tmp_path / "c")
        with Client(answering.url, model="m", dialect="openai", cache=cache) as client:
            first, second = (client.chat("Hi", temperature=0) for _ in range(2))
            assert (first.cached, second.cached) == (False, True)
            assert (second.text, second.raw) == (first.text, first.raw)
            assert len(answering.seen) == 1
            client.chat("Hi", temperature=0, cache=False)
            client.chat("Hi", temperature=1)
            client.chat("Hi", temperature=1)
            assert len(answering.seen) == 4
        cache.close()

    def test_frameworks_endpoints_and_keys_share_it(self, answering, other_wire, tmp_path):
        other_wire.answers(completed().raw)
        with Client(answering.url, model="m", dialect="openai", cache=tmp_path / "c", api_key="a") as client:
            client.chat("Hi", seed=1)
        with Client(other_wire.url, model="m", dialect="vllm", cache=tmp_path / "c", api_key="b") as client:
            assert client.chat("Hi", seed=1).cached
        assert not other_wire.seen

    async def test_the_asynchronous_client(self, answering, tmp_path):
        for cached in (False, True):
            async with AsyncClient(
                answering.url, model="m", dialect="openai", cache=tmp_path / "c"
            ) as client:
                assert (await client.chat("Hi", seed=1)).cached is cached

    def test_errors_and_unfinished_answers_are_not_kept(self, wire):
        with Client(wire.url, model="m", dialect="openai", cache=Cache(), max_retries=0) as client:
            wire.handler = lambda seen, reply: reply.json({"error": {"message": "no"}}, status=500)
            with pytest.raises(ServerError):
                client.chat("Hi", seed=1)
            wire.answers(completed("abort").raw, completed("stop").raw)
            assert not client.chat("Hi", seed=1).cached
            assert not client.chat("Hi", seed=1).cached
            assert client.chat("Hi", seed=1).cached

    def test_a_damaged_entry_is_asked_for_anew(self, answering, caplog):
        cache = Cache()
        with Client(answering.url, model="m", dialect="openai", cache=cache) as client:
            client.chat("Hi", seed=1)
            cache.put(cache_key(chat([{"role": "user", "content": "Hi"}], seed=1)), b"garbage")
            assert not client.chat("Hi", seed=1).cached
            assert client.chat("Hi", seed=1).cached
        assert "damaged" in caplog.text
