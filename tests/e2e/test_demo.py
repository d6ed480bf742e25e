"""`make demo`, as a newcomer types it, and killed as an impatient one does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# The environment that runs the tests, in place of .venv; -o: which make takes as up to date.
MAKE_DEMO = ["make", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed", "demo"]


def test_the_demo_shows_real_answers_and_leaves_nothing_behind():
    with Demo() as demo:
        out, _ = demo.make.communicate(timeout=240)
    assert demo.make.returncode == 0, out
    assert out.count("The capital of France is Paris") >= 3  # HFClientVLLM, HFClientTGI, DSPy's reasoning
    assert out.count("  teacher ") == 2
    assert out.count("  child ") == 2
    assert "lighthouse" in out
    assert "tokens/s" in out
    assert "Traceback" not in out
    assert demo.seen_servers
    assert not demo.left_servers()


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGINT, 1.0), (signal.SIGINT, 9.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 5.0)],
)
def test_killed_at_any_moment_it_leaves_no_server(number, after):
    with Demo() as demo:
        time.sleep(after)
        # As a terminal does with Ctrl-C: to every process of the group.
        os.killpg(demo.make.pid, number)
        out, _ = demo.make.communicate(timeout=30)
    assert demo.make.returncode != 0
    end = time.monotonic() + 15
    while demo.left_servers() and time.monotonic() < end:
        time.sleep(0.1)
    assert not demo.left_servers(), out
    if after > 3:
        assert demo.seen_servers
    if number != signal.SIGKILL and after > 3:
        assert "Stopped" in out
        assert "Traceback" not in out


def _take_interrupts() -> None:
    """As in a terminal: what a shell starts in the background ignores Ctrl-C, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Demo:
    """`make demo` in a process group of its own, and the servers seen below it."""

    def __init__(self) -> None:
        self.seen_servers: set[psutil.Process] = set()
        self._done = threading.Event()

    def __enter__(self) -> Demo:
        self.make = subprocess.Popen(
            MAKE_DEMO,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=_take_interrupts,
        )
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._watcher.join()
        self.make.kill()
        self.make.wait()
        self.make.stdout.close()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended while we looked
                for process in psutil.Process(self.make.pid).children(recursive=True):
                    if "--exit-with-parent" in process.cmdline():
                        self.seen_servers.add(process)

    def left_servers(self) -> list[psutil.Process]:
        """Return the servers that still run."""
        return [
            process
            for process in self.seen_servers
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        ]
