from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import myllm
from myllm.cli._app import build
from myllm.cli._errors import exit_code, in_options
from myllm.errors import (
    AllEndpointsDown,
    AuthenticationError,
    ConnectError,
    ConnectTimeoutError,
    RequestTimeoutError,
    ServerError,
    UnknownParameterError,
    UnsupportedFeatureError,
)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "myllm", *args], capture_output=True, text=True, check=False)


def test_help_lists_the_commands_without_loading_the_engine():
    code = (
        "import sys; sys.argv = ['myllm', '--help']; from myllm.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'fastapi'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("chat", "complete", "doctor", "endpoints", "run-batch", "serve"):
        assert command in done.stdout


def test_a_command_loads_no_other_one():
    code = (
        "import sys; sys.argv = ['myllm', 'serve', '--help']; from myllm.cli import main\n"
        "try: main()\n"
        "finally: assert not {'myllm.client', 'httpx', 'httpcore'} & set(sys.modules), 'loaded'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version():
    assert run("--version").stdout == f"myllm {myllm.__version__}\n"


def test_an_unknown_command_names_the_near_one():
    done = run("sreve")
    assert done.returncode == 2
    assert "'sreve'" in done.stderr
    assert "'serve'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_that_cannot_be_loaded_harms_no_other(monkeypatch):
    real = importlib.metadata.entry_points
    broken = importlib.metadata.EntryPoint("broken", "no_such_module:command", "myllm.commands")

    def entry_points(**query):
        ours = (
            (broken,)
            if query.get("group") == broken.group and query.get("name", "broken") == "broken"
            else ()
        )
        return [*real(**query), *ours]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    runner = CliRunner()
    listed = runner.invoke(build(), ["--help"])
    assert listed.exit_code == 0
    assert "broken" in listed.stdout
    assert "chat" in listed.stdout
    used = runner.invoke(build(), ["broken"])
    assert used.exit_code == 1
    assert used.stderr == "myllm broken: No module named 'no_such_module'\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownParameterError("x"), 2),
        (UnsupportedFeatureError("x"), 2),
        (ConnectError("x"), 3),
        (ConnectTimeoutError("x"), 3),
        (AllEndpointsDown("x", errors={}), 3),
        (AuthenticationError("x", status=401), 4),
        (RequestTimeoutError("x", phase="first_byte"), 1),
        (ServerError("x", status=500), 1),
    ],
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_a_connection_that_broke_had_reached_the_server():
    broke = ConnectError("x")
    broke.connected = True
    assert exit_code(broke) == 1


@pytest.mark.parametrize(
    ("hint", "said"),
    [
        ("Give the server's key as `api_key=`, or in `MYLLM_API_KEY`.", "`--api-key`"),
        ("`client.models()` lists the models that are served.", "`myllm endpoints` lists"),
        ("check `url`, `port` and `dialect`.", "check `--url` and `--dialect`."),
        ("Check `port` and `url`.", "Check `--url`."),
        ("or wait longer with `timeout=Timeout(first_byte=…)`.", "or wait longer with `--timeout`."),
        ("or lower `max_tokens`.", "or lower `--max-tokens`."),
    ],
)
def test_hints_speak_of_options(hint, said):
    assert said in in_options(hint)
