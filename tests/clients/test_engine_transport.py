"""An engine in this process in the place of a server: what it answers is compared with a server over HTTP."""

from __future__ import annotations

import asyncio
import copy
import gc
import importlib.metadata
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import litellm
import openai
import pytest
import uvloop

import myllm
from myllm import AsyncClient, AsyncEngineTransport, Client, EngineTransport, HFClientTGI, HFClientVLLM
from myllm_engine import LLM, AsyncEngine, EngineConfig

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
LONG: dict[str, Any] = {"max_tokens": 1000, "ignore_eos": True, "temperature": 0}


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait until something is true; return whether it became so."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def is_idle(engine: AsyncEngine) -> bool:
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.kv_pages_free == stats.kv_pages_total


@pytest.fixture
def engine(local_engine: AsyncEngine) -> Iterator[AsyncEngine]:
    """The engine; each test leaves it with nothing to do."""
    yield local_engine
    assert until(lambda: is_idle(local_engine))


@pytest.fixture
def client(engine: AsyncEngine) -> Iterator[Client]:
    with Client(engine=engine, max_retries=0) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "prompt"), [("chat", "What is the capital of France?"), ("text", "The capital of France is")]
)
@pytest.mark.parametrize("cls", [HFClientVLLM, HFClientTGI])
def test_the_old_clients_answer_as_over_http(engine, server, cls, kind, prompt):
    settings: dict[str, Any] = {"model_type": kind, "temperature": 0, "max_tokens": 12}
    here = cls("smollm2", engine=engine, **settings)
    there = cls("smollm2", port=server.port, **settings)
    answer = here._generate(prompt)
    assert answer == there._generate(prompt)
    assert answer["choices"][0]["text"]
    here.close()
    there.close()


def test_all_routes_are_there(engine, server):
    with httpx.Client(transport=EngineTransport(engine), base_url="http://engine") as here:
        with httpx.Client(base_url=server.url) as there:
            for path in ("/health", "/version", "/info", "/openapi.json", "/nowhere"):
                mine, other = here.get(path), there.get(path)
                assert (mine.status_code, mine.content) == (other.status_code, other.content), path
            assert mine.headers["server"] == other.headers["server"]


def test_a_stream_comes_while_it_is_made(client, engine):
    with client.stream_complete("Once upon a time", max_tokens=40, ignore_eos=True, temperature=0) as stream:
        first = next(iter(stream))
        assert engine.stats().num_running == 1  # the last token is far away
        text = first.text + "".join(chunk.text for chunk in stream)
        assert stream.final().usage.completion_tokens == 40
    assert text == client.complete("Once upon a time", max_tokens=40, ignore_eos=True, temperature=0).text


def test_an_early_close_aborts(client, engine):
    before = engine.stats().generation_tokens_total
    with client.stream_complete("Once", **LONG) as stream:
        for count, _ in enumerate(stream):
            if count == 3:
                break
    assert until(lambda: is_idle(engine))
    assert engine.stats().generation_tokens_total - before < 500


def test_a_close_from_another_thread_aborts(client, engine):
    with client.stream_complete("Once", **LONG) as stream:
        next(iter(stream))
        closer = threading.Thread(target=stream.close)
        closer.start()
        assert len(list(stream)) < 500
        closer.join()
    assert until(lambda: is_idle(engine))


def test_a_deadline_ends_the_request(client, engine):
    with pytest.raises(myllm.RequestTimeoutError) as caught:
        client.complete("Once", timeout=0.5, **LONG)
    assert caught.value.phase == "total"
    assert until(lambda: is_idle(engine))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_the_async_client_in_either_event_loop(engine, run):
    async def main() -> list[str]:
        async with AsyncClient(engine=engine, max_retries=0) as client:
            numbers = [str(number) for number in range(100, 108)]
            answers = await asyncio.gather(
                *(client.chat("Say a number.", choice=[number], max_tokens=8) for number in numbers)
            )
            assert [answer.text for answer in answers] == numbers
            task = asyncio.create_task(client.complete("Once", **LONG))
            assert await asyncio.to_thread(until, lambda: engine.stats().num_running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with client.stream_complete("Once", **LONG) as stream:
                return [
                    chunk.text for _, chunk in zip(range(3), [c async for c in _few(stream)], strict=False)
                ]

    async def _few(stream: Any) -> Any:
        for _ in range(3):
            yield await anext(aiter(stream))

    with ThreadPoolExecutor(1) as thread:  # the test itself runs in an event loop
        assert len(thread.submit(run, main()).result()) == 3


def test_sixteen_threads_get_their_own_answers(client):
    def ask(number: int) -> str:
        return client.chat("Say a number.", choice=[str(number)], max_tokens=8, temperature=0).text

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200, 232))) == [str(number) for number in range(200, 232)]


def test_a_batch_goes_over_it_too(client):
    results = list(client.batch(["2, 4,", "1, 2,"], concurrency=2, max_tokens=2, temperature=0))
    assert [result.error for result in results] == [None, None]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ({"model": "nothing"}, myllm.NotFoundError),
        ({"max_tokens": 10**6}, myllm.ContextLengthError),
        ({"extra_body": {"top_p": 7}}, myllm.BadRequestError),
    ],
)
def test_refusals_are_those_of_a_server(client, server, call, error):
    with pytest.raises(error) as here:
        client.chat(MESSAGES, **call)
    with server.client(max_retries=0) as remote, pytest.raises(error) as there:
        remote.chat(MESSAGES, **call)
    assert str(here.value).replace("http://engine", server.url) == str(there.value)


def test_the_openai_sdk(engine, client):
    http = httpx.Client(transport=EngineTransport(engine))
    with openai.OpenAI(base_url="http://engine/v1", api_key="unused", http_client=http) as sdk:
        create = sdk.chat.completions.create
        answer = create(model="smollm2", messages=MESSAGES, max_tokens=10, temperature=0)
        assert answer.choices[0].message.content == client.chat(MESSAGES, max_tokens=10, temperature=0).text
        chunks = create(model="smollm2", messages=MESSAGES, max_tokens=10, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
            answer.choices[0].message.content
        )
        stream = create(
            model="smollm2", messages=MESSAGES, stream=True, max_tokens=1000, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        told = litellm.completion("openai/smollm2", MESSAGES, client=sdk, max_tokens=10, temperature=0)
        assert told.choices[0].message.content == answer.choices[0].message.content


async def test_the_async_openai_sdk(engine, client):
    http = httpx.AsyncClient(transport=AsyncEngineTransport(engine))
    async with openai.AsyncOpenAI(base_url="http://engine/v1", api_key="unused", http_client=http) as sdk:
        stream = await sdk.chat.completions.create(
            model="smollm2", messages=MESSAGES, max_tokens=10, temperature=0, stream=True
        )
        texts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
    assert "".join(texts) == client.chat(MESSAGES, max_tokens=10, temperature=0).text
    assert len(texts) > 3


def test_an_llm_is_an_engine_too(engine):
    llm = LLM.__new__(LLM)  # another model would take seconds to load
    llm.engine = engine
    with Client(engine=llm) as client:
        assert [model.id for model in client.models()] == ["smollm2"]


def test_the_thread_ends_with_its_last_client_and_with_the_engine():
    before = set(threading.enumerate())

    def threads() -> list[str]:
        new = set(threading.enumerate()) - before
        return sorted(thread.name for thread in new if thread.name.startswith("myllm-"))

    engine = AsyncEngine(EngineConfig(kv_cache_memory=64 * 2**20))
    first, second = Client(engine=engine), Client(engine=engine)
    first.models()
    second.models()
    assert threads() == ["myllm-engine", "myllm-server"]  # one for all clients
    del first
    gc.collect()
    second.models()
    del second
    gc.collect()
    assert until(lambda: threads() == ["myllm-engine"])

    client = Client(engine=engine, max_retries=0)
    with client.stream_complete("Once", **LONG) as stream:
        next(iter(stream))
        threading.Timer(0.1, engine.close).start()
        with pytest.raises(myllm.MyLLMError, match="engine is closed"):
            for _ in stream:
                pass
    assert until(lambda: not threads())
    with pytest.raises(myllm.ConnectError, match="No connection to http://engine: the engine is closed"):
        client.models()
    with (
        httpx.Client(transport=EngineTransport(engine)) as http,
        pytest.raises(httpx.ConnectError, match="closed"),
    ):
        http.get("http://engine/health")
    engine.close()


def test_a_fork_has_no_engine(client):
    client.models()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            client.models()
        except myllm.ConnectError as error:
            code = 0 if "of which this is a fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.models()


def test_copies_reach_the_same_engine_and_a_pickle_is_refused(client, engine):
    endpoint = copy.deepcopy(client._route.endpoints[0])
    assert endpoint == client._route.endpoints[0]
    with pytest.raises(TypeError, match="an engine lives in its process"):
        pickle.dumps(client)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"base_url": "http://localhost:8000"}, "base_url"),
        ({"api_key": "k"}, "api_key"),
        ({"endpoints": [myllm.Endpoint("http://localhost")]}, "endpoints"),
        ({"http": myllm.HTTPOptions(verify=False)}, "http"),
    ],
)
def test_an_engine_has_no_address(local_engine, given, name):
    with pytest.raises(myllm.InvalidParameterError, match=f"where `{name}` says nothing"):
        Client(engine=local_engine, **given)


@pytest.mark.parametrize("given", [{"port": 8000}, {"url": "http://gpu1"}, {"api_key": "k"}])
def test_nor_has_it_for_the_old_clients(local_engine, given):
    (name,) = given
    with pytest.raises(myllm.InvalidParameterError, match=f"where `{name}` says nothing"):
        HFClientVLLM("smollm2", engine=local_engine, **given)


def test_what_is_no_engine_is_refused():
    with pytest.raises(myllm.InvalidParameterError, match=r"`engine=\['smollm2'\]` is no engine"):
        Client(engine=["smollm2"])


def test_without_an_engine_installed_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    with pytest.raises(myllm.MissingExtraError, match=r"pip install 'myllm-suite\[engine\]'"):
        Client(engine=object())
