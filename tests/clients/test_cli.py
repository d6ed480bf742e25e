from __future__ import annotations

import subprocess
import sys

import myllm


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
    assert "serve" in done.stdout


def test_version():
    assert run("--version").stdout == f"myllm {myllm.__version__}\n"


def test_an_unknown_command_is_one_readable_message():
    done = run("sreve")
    assert done.returncode == 2
    assert "sreve" in done.stderr
    assert "Traceback" not in done.stderr
