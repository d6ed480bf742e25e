"""`myllm endpoints`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

from typer.testing import CliRunner

from myllm.cli._app import build


def endpoints(*args: str):
    return CliRunner().invoke(build(), ["endpoints", *args])


def test_a_server_that_is_up(server):
    done = endpoints(server.url)
    assert done.exit_code == 0
    header, row = done.stdout.splitlines()
    assert header.split() == ["URL", "STATE", "KIND", "MODELS", "CONTEXT", "LATENCY"]
    assert row.split()[:7] == [server.url, "up", "myllm", "serve", "0.1.0", "smollm2", "8192"]


def test_some_are_down(server, free_port):
    done = endpoints("--json", "-u", server.url, f"localhost:{free_port}")
    assert done.exit_code == 1
    down, up = json.loads(done.stdout)
    assert (up["state"], up["models"], up["max_model_len"], up["dialect"]) == (
        "up",
        ["smollm2"],
        8192,
        "vllm",
    )
    assert up["latency_ms"] > 0
    assert down["state"] == "down"
    assert "refused" in down["problem"]


def test_all_are_down(free_port, black_hole):
    assert endpoints(f"localhost:{free_port}", f"127.0.0.1:{black_hole}", "--timeout", "0.3").exit_code == 3


def test_a_key_that_is_refused(wire):
    wire.handler = lambda seen, reply: reply.json({}, 401)
    done = endpoints(wire.url, "--api-key", "sesame-1234")
    assert done.exit_code == 4
    assert "no access" in done.stdout
    assert "sesame" not in done.output


def test_what_answers_but_serves_nothing(wire, other_wire):
    wire.handler = lambda seen, reply: reply.json({"detail": "loading"}, 503)
    other_wire.handler = lambda seen, reply: reply.json({}, 404)
    done = endpoints(wire.url, other_wire.url, "--json")
    assert done.exit_code == 3
    assert [row["state"] for row in json.loads(done.stdout)] == ["not ready", "no models"]


def test_the_default_comes_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("MYLLM_BASE_URL", server.url)
    assert server.url in endpoints().stdout


def test_watching_goes_on_until_ctrl_c(server):
    command = [
        sys.executable,
        "-m",
        "myllm",
        "endpoints",
        server.url,
        "--watch",
        "--interval",
        "0.1",
        "--json",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=10)
    assert [look[0]["state"] for look in looks] == ["up"] * 3
    assert (watching.returncode, said) == (130, "")
