"""`myllm doctor`; what it finds is in test_doctor.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from myllm.cli._app import build


def doctor(*args: str):
    return CliRunner().invoke(build(), ["doctor", *args])


def test_a_healthy_server(server):
    done = doctor(f"{server.url}/v1", "--quick")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "Settings", "Connection", "Server", "Healthy, with no surprises.",
    ]  # fmt: skip
    assert f"  ✓ url            {server.url} (as given: '{server.url}/v1')" in lines
    assert "  ✓ models         smollm2" in lines
    assert "\x1b" not in done.stdout


def test_a_problem_has_its_advice_below(free_port):
    done = doctor(f"localhost:{free_port}")
    assert done.exit_code == 3
    *_, problem, advice, _, verdict = done.stdout.splitlines()
    assert problem.startswith("  ✗ tcp ")
    assert advice.strip() == f"→ Start a server (`myllm serve --port {free_port}`), or correct the port."
    assert verdict == f"http://localhost:{free_port} cannot be reached."


def test_advice_speaks_of_options(wire):
    wire.handler = lambda seen, reply: reply.json({}, 401)
    done = doctor(wire.url)
    assert done.exit_code == 1
    assert "Give its key as `--api-key`, or in `MYLLM_API_KEY`." in done.stdout


def test_json(server):
    done = doctor(server.url, "--quick", "--json")
    report = json.loads(done.stdout)
    assert (report["healthy"], report["reachable"], report["url"]) == (True, True, server.url)
    assert {finding["status"] for finding in report["findings"]} == {"ok"}


def test_a_url_that_is_none():
    done = doctor("ftp://example.org")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("myllm: `url='ftp://example.org'`")


def test_the_server_is_an_argument_or_an_option(free_port):
    assert f"http://localhost:{free_port} (as given" in doctor("-u", f"localhost:{free_port}").stdout
    done = doctor("localhost:1", "--url", "localhost:2")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "given twice" in done.stderr


def test_a_terminal_that_knows_ascii_only(free_port):
    done = subprocess.run(
        [sys.executable, "-m", "myllm", "doctor"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "OPENAI_BASE_URL": f"http://localhost:{free_port}/v1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert f"  + url            http://localhost:{free_port} (from OPENAI_BASE_URL" in done.stdout
    assert "  x tcp" in done.stdout
