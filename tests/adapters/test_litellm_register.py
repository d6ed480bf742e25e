"""`register`, and where a call goes: to a client's servers, to an address, or to an engine in this process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import litellm
import pytest

import myllm
import myllm_adapters.litellm as adapter

M = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = {
    "id": "chatcmpl-1",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
}


@pytest.fixture(autouse=True)
def _own_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test registers out of the others."""
    monkeypatch.setattr(
        litellm, "custom_provider_map", [dict(entry) for entry in litellm.custom_provider_map]
    )
    for name in ("provider_list", "_custom_providers"):
        monkeypatch.setattr(litellm, name, list(getattr(litellm, name)))


def test_register_is_idempotent_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter.register()
    adapter.register()
    assert [e["custom_handler"] for e in litellm.custom_provider_map if e["provider"] == "myllm"] == [
        adapter.handler
    ]
    assert litellm.get_llm_provider("myllm/org/model")[:2] == ("org/model", "myllm")
    monkeypatch.setattr(litellm, "custom_provider_map", [])
    adapter.register()
    assert [e["provider"] for e in litellm.custom_provider_map] == ["myllm"]


async def test_calls_go_through_the_registered_client(wire: Any) -> None:
    wire.answers(ANSWER)
    client = myllm.Client(
        wire.url, dialect="vllm", temperature=0.5, headers={"X-Team": "blue"}, max_retries=3
    )
    handler = adapter.register(client, "house")
    assert isinstance(handler, adapter.MyLLMProvider)
    litellm.completion(model="house/org/m", messages=M)
    await litellm.acompletion(model="house/org/m", messages=M, temperature=0)
    assert [body["temperature"] for body in wire.bodies] == [0.5, 0]
    assert {body["model"] for body in wire.bodies} == {"org/m"}
    assert {seen.headers["x-team"] for seen in wire.seen} == {"blue"}
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "loading"}}, 503)
    with pytest.raises(litellm.ServiceUnavailableError, match="loading") as caught:
        litellm.completion(model="house/m", messages=M)
    assert caught.value.llm_provider == "house"
    assert len(wire.seen) == 3  # the client's own retries are off: LiteLLM's count


async def test_an_async_client_serves_both_kinds_of_call(wire: Any) -> None:
    wire.answers(ANSWER)
    adapter.register(myllm.AsyncClient(wire.url, dialect="vllm", top_k=3), "house")
    litellm.completion(model="house/m", messages=M)
    await litellm.acompletion(model="house/m", messages=M)
    assert [body["top_k"] for body in wire.bodies] == [3, 3]


def test_a_dead_server_of_several_costs_no_retry(wire: Any, free_port: int) -> None:
    wire.answers(ANSWER)
    adapter.register(myllm.Client([f"http://127.0.0.1:{free_port}", wire.url], dialect="vllm"), "house")
    for _ in range(2):
        assert litellm.completion(model="house/m", messages=M).choices[0].message.content == "ok"


def test_an_api_base_goes_past_the_registered_client(wire: Any, other_wire: Any) -> None:
    wire.answers(ANSWER)
    other_wire.answers(ANSWER)
    adapter.register(myllm.Client(wire.url, dialect="vllm"))
    litellm.completion(model="myllm/m", messages=M, api_base=other_wire.url, dialect="vllm")
    assert (len(wire.seen), len(other_wire.seen)) == (0, 1)
    with pytest.raises(litellm.BadRequestError, match="`api_key` goes with `api_base`"):
        litellm.completion(model="myllm/m", messages=M, api_key="secret")
    litellm.completion(model="myllm/m", messages=M)
    assert len(wire.seen) == 1
    adapter.register()
    litellm.completion(model="myllm/m", messages=M, api_base=other_wire.url, dialect="vllm")
    assert len(other_wire.seen) == 2


def test_litellms_own_address_comes_before_the_environments(
    wire: Any, other_wire: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire.answers(ANSWER)
    monkeypatch.setenv("MYLLM_BASE_URL", other_wire.url)
    monkeypatch.setattr(litellm, "api_base", wire.url)
    litellm.completion(model="myllm/m", messages=M, dialect="vllm")
    assert (len(wire.seen), len(other_wire.seen)) == (1, 0)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"provider": "openai"}, "one of LiteLLM's own"),
        ({"provider": "vllm"}, "one of LiteLLM's own"),
        ({"provider": "a/b"}, "without a slash"),
        ({"provider": ""}, "without a slash"),
        ({"client": "http://localhost:8000"}, "must be a `myllm.Client`"),
    ],
)
def test_what_cannot_be_registered(arguments: dict[str, Any], match: str) -> None:
    before = list(litellm.custom_provider_map)
    with pytest.raises(myllm.InvalidParameterError, match=match):
        adapter.register(**arguments)
    assert litellm.custom_provider_map == before


def test_another_handlers_name_is_not_taken_away() -> None:
    litellm.custom_provider_map.append({"provider": "theirs", "custom_handler": litellm.CustomLLM()})
    with pytest.raises(myllm.InvalidParameterError, match="registered with .*CustomLLM.* already"):
        adapter.register(provider="theirs")


def test_without_a_server_the_model_runs_in_this_process() -> None:
    code = """
import asyncio, threading
from concurrent.futures import ThreadPoolExecutor
import litellm, myllm_adapters.litellm
from myllm.engines import started_engine

ask = dict(model="myllm/smollm2", temperature=0, max_tokens=8,
           messages=[{"role": "user", "content": "What is the capital of France?"}])
with ThreadPoolExecutor(3) as pool:
    answers = list(pool.map(lambda _: litellm.completion(**ask), range(3)))
async def more():
    stream = await litellm.acompletion(**ask, stream=True)
    return "".join([c.choices[0].delta.content or "" async for c in stream])
texts = [a.choices[0].message.content for a in answers] + [asyncio.run(more())]
assert set(texts) == {"The capital of France is Paris."}, texts
vectors = litellm.embedding(model="myllm/smollm2", input=["x"])
assert len(vectors.data[0]["embedding"]) == started_engine("smollm2").hidden_size
try:
    litellm.completion(**{**ask, "model": "myllm/no/such-model"})
except litellm.NotFoundError as exc:
    print(exc)
engines = [t.name for t in threading.enumerate() if t.name == "myllm-engine"]
print("engines:", len(engines) or [t.name for t in threading.enumerate()])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "The model 'no/such-model' could not be loaded in this process" in done.stdout
    assert "engines: 1" in done.stdout


def test_without_an_engine_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    with pytest.raises(
        litellm.BadRequestError, match="Neither `api_base` nor `MYLLM_BASE_URL` names a server"
    ):
        litellm.completion(model="myllm/not-started", messages=M)
    with pytest.raises(litellm.BadRequestError, match=r"pip install 'myllm-suite\[engine\]'"):
        litellm.embedding(model="myllm/not-started", input=["x"])
