"""Every command in docs/cli.md runs, and answers what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
# A command, and the lines below it that show its answer.
EXAMPLES = re.findall(r"^    \$ (.*)\n((?:    (?!\$).*\n)*)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_page_has_examples_of_each_command():
    assert {re.search(r"myllm ([\w-]+)", command)[1] for command, _ in EXAMPLES} == {
        "chat", "complete", "endpoints", "doctor", "run-batch",
    }  # fmt: skip


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_an_example_runs(command, shown, server):
    done = subprocess.run(
        [
            "bash",
            "-c",
            command.replace("myllm", f"{sys.executable} -m myllm").replace("8000", str(server.port)),
        ],
        env={**os.environ, "MYLLM_BASE_URL": server.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if shown:
        assert done.stdout == "".join(line[4:] for line in shown.splitlines(keepends=True))
