"""A process for each thing that is measured: kept for the whole run, told by lines of JSON what to measure.

So nobody's globals disturb the others, and who is not asked sleeps. `asker` is for who asks, `obey` for who
answers. Standard library only: a peer's environment holds no more than the peer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]

Figures = dict[str, Any]
Ask = Callable[..., Figures]


class WorkerError(Exception):
    """A worker ended in place of answering; its own words are on its standard error."""


@contextmanager
def python(
    *arguments: str,
    executable: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
    stdout: IO[str] | None = None,
    stderr: IO[str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run Python in the repository's root and in a plain environment: no proxy, no foreign keys.

    `environment` is added to it. The process is killed at the end. Its standard output is a pipe, unless it
    has a file of its own.
    """
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith(("MYLLM_", "OPENAI_", "HF_"))
    }
    plain |= {"HF_HUB_DISABLE_TELEMETRY": "1", **(environment or {})}
    with subprocess.Popen(
        [str(executable), *arguments],
        stdin=subprocess.PIPE,
        stdout=stdout or subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=ROOT,
        env=plain,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def asker(name: str, process: subprocess.Popen[str]) -> Ask:
    """Return a function that has the process measure something and gives its figures.

    It raises WorkerError when the process ends in place of answering.
    """

    def ask(measure: str, **arguments: Any) -> Figures:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"measure": measure, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"{name} failed to measure `{measure}`")
        return json.loads(line)

    return ask


def obey(make: Callable[[], object]) -> None:
    """Make the object whose methods are the commands, and obey until the standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever started us
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)  # what a library prints must not get between the figures
        worker = make()
        for line in sys.stdin:
            command: dict[str, Any] = json.loads(line)
            figures = getattr(worker, command.pop("measure"))(**command)
            print(json.dumps(figures), file=out, flush=True)
