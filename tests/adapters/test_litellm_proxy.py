"""The provider behind LiteLLM's proxy, configured as the example is, driven by OpenAI's client."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

import myllm

pytestmark = pytest.mark.slow  # the proxy alone takes about ten seconds to start

CONFIG = Path(__file__).parents[2] / "examples" / "litellm_proxy.yaml"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def proxy(server: myllm.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """An OpenAI client of a running proxy."""
    pytest.importorskip("litellm.proxy.proxy_server", reason="needs litellm[proxy]")
    command = shutil.which("litellm", path=str(Path(sys.executable).parent))
    assert command is not None
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    folder = tmp_path_factory.mktemp("proxy")
    key = f"sk-{secrets.token_hex(24)}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [command, "--config", str(CONFIG), "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "MYLLM_BASE_URL": server.url, "LITELLM_MASTER_KEY": key},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)
            deadline = time.monotonic() + 120
            while True:
                try:
                    client.models.list()
                    break
                except openai.APIError:
                    assert process.poll() is None, (folder / "log").read_text()[-2000:]
                    assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                    time.sleep(0.2)
            yield client
        finally:
            process.terminate()
            process.wait(30)


def test_the_call_of_litellm_s_vllm_page(proxy: openai.OpenAI) -> None:
    response = proxy.chat.completions.create(
        model="my-model", messages=[{"role": "user", "content": "what llm are you"}], max_tokens=4
    )
    assert response.choices[0].message.content


def test_embeddings(proxy: openai.OpenAI, server: myllm.Server) -> None:
    response = proxy.embeddings.create(model="my-embeddings", input=["red", "green"])
    with server.client(model="smollm2") as client:
        direct = client.embed(["red", "green"])
    assert [entry.embedding for entry in response.data] == direct.vectors


def test_tools(proxy: openai.OpenAI) -> None:
    call = {"type": "function", "function": {"name": "now"}}
    answer = proxy.chat.completions.create(
        model="my-model", messages=QUESTION, tools=[call], tool_choice=call, max_tokens=20
    )
    assert answer.choices[0].message.tool_calls
    assert answer.choices[0].message.tool_calls[0].function.name == "now"


def test_chat(proxy: openai.OpenAI) -> None:
    answer = proxy.chat.completions.create(
        model="myllm/smollm2", messages=QUESTION, max_tokens=8, temperature=0, extra_body={"top_k": 3}
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_stream(proxy: openai.OpenAI) -> None:
    chunks = list(
        proxy.chat.completions.create(
            model="myllm/smollm2", messages=QUESTION, max_tokens=3, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The capital of"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


def test_completion(proxy: openai.OpenAI, server: myllm.Server) -> None:
    answer = proxy.completions.create(model="myllm/smollm2", prompt="One, two,", max_tokens=4, temperature=0)
    with server.client(model="smollm2") as client:
        assert answer.choices[0].text == client.complete("One, two,", max_tokens=4, temperature=0).text


def test_refusals(proxy: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 8192"):
        proxy.chat.completions.create(model="myllm/smollm2", messages=QUESTION, max_tokens=100_000)
    with pytest.raises(openai.BadRequestError, match="Did you mean `min_p`"):
        proxy.chat.completions.create(model="myllm/smollm2", messages=QUESTION, extra_body={"min_pp": 1})
