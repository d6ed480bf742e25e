"""Every code block of the documents runs as it stands, against the server that the README starts.

Each Python block runs in a process of its own, as a reader would paste it; a comment at the line's beginning is
what the reader will see, with `…` for what is left out. The port 8000 of the documents is a free one here.
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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import myllm

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    document: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.document}: {self.code.splitlines()[0]}"


BLOCKS = [
    Block(str(path.relative_to(ROOT)), language, code)
    for path in DOCUMENTS
    for language, code in _FENCE.findall(path.read_text(encoding="utf-8"))
]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [
    command
    for block in BLOCKS
    if block.language == "bash"
    for command in block.code.replace("\\\n", " ").splitlines()
    if command
]


def test_every_block_is_of_a_language_that_is_run():
    assert {block.language for block in BLOCKS} <= {"python", "bash"}
    assert len(PYTHON) >= 8


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The README's own `myllm serve` command, on a free port."""
    (command,) = [command for command in COMMANDS if command.startswith("myllm serve")]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        free = sock.getsockname()[1]
    words = shlex.split(command.replace("8000", str(free)))
    words[0] = str(Path(sys.executable).with_name("myllm"))
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            with myllm.Client(f"http://localhost:{free}", max_retries=0) as client:
                _wait(client, process)
            yield free
        finally:
            process.terminate()
            process.communicate(timeout=20)


def _wait(client: myllm.Client, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            client.models()
            return
        except myllm.ConnectError:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_blocks_run_and_show_what_they_say(block, port, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block.code.replace("8000", str(port))],
        cwd=tmp_path,
        # Offline, huggingface_hub's client would refuse the server's address, too.
        env={**os.environ, "DSPY_CACHEDIR": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = " ".join(done.stdout.split())
    for shown in _shown(block.code):
        assert re.search(shown, seen), f"{shown!r} is not in {seen!r}"


def _shown(code: str) -> list[str]:
    """Return a pattern for each run of comment lines."""
    runs: list[list[str]] = [[]]
    for line in code.splitlines():
        if line.startswith("# "):
            runs[-1].append(line[2:])
        elif runs[-1]:
            runs.append([])
    return [r".*?".join(map(re.escape, " ".join(" ".join(run).split()).split("…"))) for run in runs if run]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, request):
    words = shlex.split(command, comments=True)
    if words[:2] == ["myllm", "serve"]:
        request.getfixturevalue("port")
    elif words[0] == "curl":
        assert shutil.which("curl"), "the documents' commands need curl"
        free = request.getfixturevalue("port")
        done = subprocess.run(
            ["bash", "-c", command.replace("8000", str(free)) + " -sS"], capture_output=True, check=True
        )
        assert "Paris" in json.loads(done.stdout)["choices"][0]["message"]["content"]
    elif words[0] == "make":
        # The demo runs in test_demo.py, and these tests are `make test`; here, that make knows them.
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=True)
    elif words[:2] == ["pip", "install"]:
        # test_packaging.py installs for real; here, that pip understands the command and finds the extras.
        done = subprocess.run(
            [sys.executable, "-m", *words, "--dry-run", "--no-deps", "--no-build-isolation"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "does not provide the extra" not in done.stdout + done.stderr
    else:
        pytest.fail(f"no test runs {command!r}")
