"""The examples on the frameworks' own pages about vLLM and TGI, run as they are written, on a real server.

`data/` has them as the pages had them. What is written otherwise here is in `SUBSTITUTIONS`, each with its
reason, and what the pages leave to the reader in `LEFT_OUT`; nothing else is changed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

BIN = Path(sys.executable).parent
_FENCE = re.compile(r"^```\w+ (\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = {
    path.stem: dict(_FENCE.findall(path.read_text(encoding="utf-8")))
    for path in (Path(__file__).parent / "data").glob("*.txt")
}

MODEL = "the model's name"
SERVER = "our server's command"
PORT = "a free port"
# A page: what it says, what is said here, and why. `{port}`, `{url}` and the like are known when it runs.
SUBSTITUTIONS: dict[str, list[tuple[str, str, str]]] = {
    "dspy_hfclient_vllm": [
        (
            "python -m vllm.entrypoints.openai.api_server --model mosaicml/mpt-7b",
            "myllm serve smollm2",
            SERVER,
        ),
        ("dspy.HFClientVLLM", "HFClientVLLM", "the import"),
        ("mosaicml/mpt-7b", "smollm2", MODEL),
        ("8000", "{port}", PORT),
    ],
    "dspy_hfclient_tgi": [
        ("dspy.HFClientTGI", "HFClientTGI", "the import"),
        ("meta-llama/Llama-2-7b-hf", "smollm2", MODEL),
        ("8080", "{port}", PORT),
    ],
    "autogen_vllm": [
        (
            "python -m vllm.entrypoints.openai.api_server --model mistralai/Mistral-7B-Instruct-v0.2",
            "myllm serve smollm2 --port {port}",
            SERVER,
        ),
        ("mistralai/Mistral-7B-Instruct-v0.2", "smollm2", MODEL),
        ("8000", "{port}", PORT),
    ],
    "litellm_vllm": [
        ("openai/facebook/opt-125m", "myllm/smollm2", MODEL),
        ("vllm/facebook/opt-125m", "myllm/smollm2", MODEL),
        ("vllm/togethercomputer/LLaMA-2-7B-32K", "myllm/smollm2", MODEL),
        ("togethercomputer/LLaMA-2-7B-32K", "smollm2", MODEL),
        ("facebook/opt-125m", "smollm2", MODEL),
        ('provider = "vllm"', 'provider = "myllm"', MODEL),
        ("https://hosted-vllm-api.co", "{url}", "the server's address"),
        ("/path/to/config.yaml", "config.yaml", "the file's path"),
        ("$ litellm", "litellm --port {proxy_port}", PORT),
        ("4000", "{proxy_port}", PORT),
        ("],\n  }'", "]\n  }'", "the page's JSON ends with a comma, which JSON has not"),
    ],
    "vllm_openai_server": [
        (
            "vllm serve NousResearch/Meta-Llama-3-8B-Instruct",
            "myllm serve smollm2 --port {port}",
            SERVER,
        ),
        ("NousResearch/Meta-Llama-3-8B-Instruct", "smollm2", MODEL),
        ("$ vllm serve SOME_MODEL", "myllm serve smollm2", SERVER),
        ("8000", "{port}", PORT),
        ("6379", "{port}", PORT),
    ],
}
LEFT_OUT = {
    "dspy_hfclient_vllm": "import dspy\nfrom myllm_adapters.dspy import HFClientVLLM\n",
    "dspy_hfclient_tgi": "import dspy\nfrom myllm_adapters.dspy import HFClientTGI\n",
    "litellm_vllm": (
        "import litellm\n"
        "import myllm_adapters.litellm\n"
        "from litellm import completion\n"
        'messages = [{"role": "user", "content": "What is the capital of France?"}]\n'
    ),
    # The provider, which the page's own need no word for.
    "litellm_vllm config": (
        "litellm_settings:\n"
        "  custom_provider_map:\n"
        '    - {"provider": "myllm", "custom_handler": myllm_adapters.litellm.handler}\n'
    ),
    "vllm_openai_server choice": "print(completion.choices[0].message.content)\n",
}


def short(tokens: int) -> list[str]:
    """Return how a server is told what the pages do not say: this small model may go on for long."""
    return ["--override-generation-config", json.dumps({"max_new_tokens": tokens, "temperature": 0})]


def written(page: str, block: str, **places: object) -> str:
    """Return a page's block with the page's substitutions."""
    text = PAGES[page][block]
    for theirs, ours, _ in SUBSTITUTIONS[page]:
        if theirs in text:
            text = text.replace(theirs, re.sub(r"{(\w+)}", lambda match: str(places[match[1]]), ours))
    return textwrap.dedent(text)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_substituted_that_the_page_does_not_say(page: str) -> None:
    whole = "\n".join(PAGES[page].values())
    for theirs, _, _ in SUBSTITUTIONS[page]:
        assert theirs in whole
        whole = whole.replace(theirs, "")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(command: str, url: str, cwd: Path, more: list[str] | None = None) -> Iterator[None]:
    """Run a page's command until the block ends; it answers when the block begins."""
    name, *arguments = shlex.split(command)
    with (cwd / "log").open("w+") as log:
        process = subprocess.Popen(
            [BIN / name, *arguments, *(more or ())],
            cwd=cwd,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(cwd),
        )
        try:
            end = time.monotonic() + 120
            while not answers(url):
                assert process.poll() is None, (cwd / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code < 500
    except httpx.TransportError:
        return False


def environment(folder: Path) -> Mapping[str, str]:
    # Without it today's proxy of LiteLLM refuses to start as the page has it, with no key of its own.
    permit = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    return {**os.environ, **permit, "DSPY_CACHEDIR": str(folder)}


def output(code: str, folder: Path, typed: str | None = None) -> str:
    """Run Python as a reader would, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(folder),
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The server that DSPy's page starts; it has TGI's API too."""
    free = free_port()
    command = written("dspy_hfclient_vllm", "serve", port=free).strip()
    with running(command, f"http://localhost:{free}/health", tmp_path_factory.mktemp("server"), short(200)):
        yield free


@pytest.mark.parametrize(
    ("page", "name"), [("dspy_hfclient_vllm", "vllm_mpt"), ("dspy_hfclient_tgi", "tgi_llama2")]
)
def test_dspy_s_clients(page: str, name: str, port: int, tmp_path: Path) -> None:
    code = LEFT_OUT[page] + "\n".join(
        written(page, block, port=port) for block in ("client", "program", "direct")
    )
    assert f"dspy.configure(lm={name})" in code
    answer, direct = output(code, tmp_path).strip().rsplit("\n", 1)
    assert answer
    assert "{'prompt': 'What is the capital of Paris?', 'choices': [{'text': '" in direct


def test_autogen_s_conversation(tmp_path: Path) -> None:
    page, free = "autogen_vllm", free_port()
    (tmp_path / "autogenmistraltemplate.jinja").write_text(written(page, "template"))
    with running(written(page, "serve", port=free), f"http://localhost:{free}/health", tmp_path, short(40)):
        shown = output(
            written(page, "conversation", port=free), tmp_path, typed="Why is the sky blue?\nexit\n"
        )
    opening, question, answer, *end = re.split(r"-{80}", shown)
    assert "agent (to user):\n\nHow can I help you today?" in opening
    assert "user (to agent):\n\nWhy is the sky blue?" in question
    assert ">>>>>>>> USING AUTO REPLY..." in answer
    assert re.search(r"agent \(to user\):\s+\w", answer)
    assert "exit" in "".join(end)


def test_litellm_s_calls(port: int, tmp_path: Path) -> None:
    page = "litellm_vllm"
    blocks = ("completion", "embedded", "default", "template", "batch")  # the last one makes other `messages`
    url = f"http://localhost:{port}"
    shown = output(LEFT_OUT[page] + "\n".join(written(page, block, url=url) for block in blocks), tmp_path)
    hosted, embedded, *others = [line for line in shown.splitlines() if line]
    for shown in (hosted, embedded):  # sampled, so that nobody knows what it says
        assert re.match(r"ModelResponse\(.*model='smollm2'.*content=['\"]\w", shown)
    assert others[-1].count("ModelResponse(") == 5


@pytest.mark.slow
def test_litellm_s_proxy(port: int, tmp_path: Path) -> None:
    page = "litellm_vllm"
    places = {"url": f"http://localhost:{port}", "proxy_port": free_port()}
    (tmp_path / "config.yaml").write_text(written(page, "config", **places) + LEFT_OUT[f"{page} config"])
    proxy = f"http://127.0.0.1:{places['proxy_port']}"
    with running(written(page, "proxy", **places).strip(), f"{proxy}/health/readiness", tmp_path):
        assert "ChatCompletion(" in output(written(page, "openai", **places), tmp_path)
        assert shutil.which("curl"), "the page's command needs curl"
        done = subprocess.run(
            ["bash", "-c", written(page, "curl", **places).strip() + " -sS"], capture_output=True, check=True
        )
        assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_vllm_s_own_client_and_constraint(tmp_path: Path) -> None:
    page, free = "vllm_openai_server", free_port()
    code = "".join(written(page, block, port=free) for block in ("client", "choice"))
    with running(written(page, "serve", port=free), f"http://localhost:{free}/health", tmp_path, short(40)):
        message, choice = output(code + LEFT_OUT[f"{page} choice"], tmp_path).strip().rsplit("\n", 1)
    assert message.startswith("ChatCompletionMessage(content=")
    assert choice in ("positive", "negative")


def test_vllm_s_config_file(tmp_path: Path) -> None:
    page, free = "vllm_openai_server", free_port()
    (tmp_path / "config.yaml").write_text(written(page, "config", port=free))
    with running(written(page, "configured", port=free), f"http://127.0.0.1:{free}/health", tmp_path):
        served = httpx.get(f"http://127.0.0.1:{free}/v1/models", trust_env=False).json()["data"]
        assert [model["id"] for model in served] == ["smollm2"]
        assert "INFO uvicorn" in (tmp_path / "log").read_text()  # as the file has it
