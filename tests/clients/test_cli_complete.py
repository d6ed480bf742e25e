"""`myllm complete`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from myllm.cli._app import build


def complete(*args: str):
    return CliRunner().invoke(build(), ["complete", *args])


def test_it_continues_the_text(server, tmp_path):
    file = tmp_path / "prompt"
    file.write_text("The capital of France is\n")  # as an editor leaves it
    common = ("-u", server.url, "-n", "2", "-t", "0")
    given = complete("The capital of France is", *common)
    assert given.stdout == " Paris.\n"
    assert complete("-f", str(file), *common).stdout == given.stdout
    piped = subprocess.run(
        [sys.executable, "-m", "myllm", "complete", *common],
        input=file.read_text(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert piped.stdout == given.stdout
    assert "cut off" in piped.stderr


def test_json(server):
    done = complete("Hello", "-u", server.url, "-n", "1", "--json")
    answer = json.loads(done.stdout)
    assert answer["object"] == "text_completion"
    assert answer["usage"]["completion_tokens"] == 1


def test_parameters_reach_the_server(wire):
    wire.handler = lambda seen, reply: reply.json({}, 400)
    complete("Hello", "-u", wire.url, "-m", "m", "--dialect", "vllm", "-p", "echo=true", "--stop", "END")
    assert wire.bodies == [
        {
            "model": "m",
            "prompt": "Hello",
            "echo": True,
            "stop": ["END"],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "no text to continue"),
        (("a", "-f", "b"), "given twice"),
        (("-f", "nowhere"), "'nowhere' cannot be read"),
        (("a", "-p", "top_q=1"), "Did you mean `top_p`?"),
    ],
)
def test_mistakes(args, said):
    done = complete(*args)
    assert done.exit_code == 2
    assert said in done.stderr
