"""`make demo`, as a newcomer types it, and killed as an impatient one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
# The environment that runs the tests, in place of .venv; -o: which make takes as up to date.
MAKE_DEMO = ["make", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/installed", "demo"]


def test_the_demo_shows_real_answers_and_leaves_nothing_behind():
    done = subprocess.run(MAKE_DEMO, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert out.count("The capital of France is Paris") >= 3  # HFClientVLLM, HFClientTGI, DSPy's reasoning
    assert out.count("  teacher ") == 2
    assert out.count("  child ") == 2
    assert "lighthouse" in out
    assert "tokens/s" in out
    assert "Traceback" not in done.stdout + done.stderr
    assert not _servers()


@pytest.mark.parametrize(
    ("number", "after"),
    [(signal.SIGINT, 1.0), (signal.SIGINT, 9.0), (signal.SIGTERM, 4.0), (signal.SIGKILL, 2.0)],
)
def test_killed_at_any_moment_it_leaves_no_server(number, after):
    with subprocess.Popen(
        MAKE_DEMO,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as make:
        time.sleep(after)
        # As a terminal does with Ctrl-C: to every process of the group.
        os.killpg(make.pid, number)
        output, _ = make.communicate(timeout=30)
    assert make.returncode != 0
    end = time.monotonic() + 15
    while _servers() and time.monotonic() < end:
        time.sleep(0.1)
    assert not _servers(), output
    if number != signal.SIGKILL and after > 3:
        assert "Stopped" in output
        assert "Traceback" not in output


def _servers() -> list[psutil.Process]:
    """The demo's servers: those of `myllm serve` that the test session itself has not started."""
    own = {child.pid for child in psutil.Process().children(recursive=True)}
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.pid not in own
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and "serve" in (process.info["cmdline"] or [])
        and "--exit-with-parent" in process.info["cmdline"]
    ]
