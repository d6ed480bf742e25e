"""The help of the command, and the table of its options in the documents.

`python tests/engine/server/flags/test_manual.py` writes the table anew.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from myllm_engine.server.cli import serve
from myllm_engine.server.flags.command import Flags
from myllm_engine.server.flags.manual import manual, shown_default, spelling
from myllm_engine.server.flags.option import PREFIX, options

DOCUMENT = Path(__file__).parents[4] / "docs" / "server.md"
BEGIN, END = "<!-- options -->\n", "<!-- end of options -->\n"


def table() -> str:
    """Return the table of all options."""
    lines = []
    for group in Flags.groups():
        shown = [option for option in options(group) if not option[2].hidden]
        if not shown:
            continue
        lines += [f"\n### {group.title}\n", "| option | default | what it does |", "|---|---|---|"]
        for name, kind, info, default in shown:
            value = shown_default(info, default)
            if value and value != "on":
                value = f"`{value}`"
            also = [variable for variable in info.envvar or () if not variable.startswith(PREFIX)]
            remark = f" Also {', '.join(f'`{variable}`' for variable in also)}." if also else ""
            text = (info.help + remark).replace("|", "\\|")
            names = f"`{spelling(name, kind, info)}`".replace("|", "\\|")
            lines.append(f"| {names} | {value} | {text} |")
    return "\n".join(lines).lstrip() + "\n"


def test_the_table_in_the_documents_is_that_of_the_options():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table(), (
        f"run: python {Path(__file__).relative_to(Path.cwd())}"
    )


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_fits_the_terminal_and_names_every_option_in_full(width):
    text = re.sub(r"\x1b\[[\d;]*m", "", manual(Flags.groups(), serve.__doc__, "myllm serve", min(width, 100)))
    for group in Flags.groups():
        for name, kind, info, _ in options(group):
            if not info.hidden:
                assert f"\n  {spelling(name, kind, info)}\n" in text
    # Names and the words of the description may be longer than a narrow terminal; what is wrapped is not.
    assert all(
        len(line) <= width for line in text.splitlines() if line.startswith(" " * 8) and " " in line.strip()
    )


def test_help_is_quick_and_reads_like_a_manual():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "myllm_engine.server", "-h"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    for words in (
        "Usage: python -m myllm_engine.server [MODEL] [OPTIONS]",
        "Examples:",
        "\nNetwork\n",
        "-p, --port N",
        "[default: 8000; also PORT]",
        "MYLLM_MAX_MODEL_LEN",
    ):
        assert words in done.stdout
    assert not re.search(r"\| +(torch|transformers|fastapi|uvicorn)$", done.stderr, re.MULTILINE)


def test_every_option_is_of_a_kind_that_files_and_variables_can_hold():
    names = [name for group in Flags.groups() for name, *_ in options(group)]
    assert len(names) == len(set(names))
    assert list(inspect.signature(serve).parameters) == ["ctx", *names]


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    DOCUMENT.write_text(head + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
