"""`myllm chat`: one question."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from myllm.cli._app import build


def chat(*args: str, input: str | None = None):
    return CliRunner().invoke(build(), ["chat", *args], input=input)


def process(*args: str, **options) -> subprocess.CompletedProcess[str]:
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    return subprocess.run(
        [sys.executable, "-m", "myllm", "chat", *args], capture_output=True, text=True, check=False, **options
    )


def event(delta: dict, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


@pytest.fixture
def openai(wire):
    """A server of no known kind that answers chats with `answer(body, reply)`."""

    def start(answer):
        def handler(seen, reply):
            if seen.path.endswith("/models"):
                reply.json({"data": [{"id": "m", "owned_by": "someone"}]})
            elif seen.method == "POST":
                answer(seen.body, reply)
            else:
                reply.json({}, 404)

        wire.handler = handler
        return wire

    return start


def test_the_answer_is_all_that_stdout_gets(server):
    done = process("What is the capital of France?", "-u", server.url, "-t", "0", "-v")
    assert done.returncode == 0
    assert done.stdout == "The capital of France is Paris.\n"
    assert "tokens read, 8 written" in done.stderr
    assert "first token after" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_what_is_piped_in_follows_the_message(openai):
    wire = openai(lambda body, reply: reply.json({}, 500))
    process("Summarise:", "--no-stream", "-u", wire.url, "-m", "m", input="one\ntwo\n")
    assert wire.bodies[-1]["messages"] == [{"role": "user", "content": "Summarise:\n\none\ntwo"}]


def test_json_is_the_whole_answer_in_openais_shape(server):
    done = chat("Hello", "-u", server.url, "--json", "-n", "3", "--system", "Be brief.", "--temperature", "0")
    answer = json.loads(done.stdout)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["choices"][0]["finish_reason"] == "length"


def test_constraints_hold(server, tmp_path):
    schema = tmp_path / "schema.json"
    properties = {"ok": {"type": "boolean"}}
    schema.write_text(
        json.dumps(
            {"type": "object", "properties": properties, "required": ["ok"], "additionalProperties": False}
        )
    )
    grammar = tmp_path / "grammar"
    grammar.write_text('root ::= "x" [0-9]')
    common = ("Hello", "-u", server.url, "-t", "0")
    assert chat(*common, "--choice", "qux", "--choice", "zap").stdout in ("qux\n", "zap\n")
    assert chat(*common, "--regex", "[0-9]{3}").stdout.strip().isdigit()
    assert list(json.loads(chat(*common, "--json-schema", str(schema)).stdout)) == ["ok"]
    assert list(json.loads(chat(*common, "--json-schema", schema.read_text()).stdout)) == ["ok"]
    assert chat(*common, "--grammar", str(grammar)).stdout[0] == "x"


def test_every_parameter_is_sent(openai):
    wire = openai(lambda body, reply: reply.json({}, 500))
    chat(
        "Hello", "-u", wire.url, "-m", "m", "--dialect", "vllm", "-t", "0.5", "-n", "7", "--seed", "3", "--stop", "a",
        "--stop", "b", "-p", "top_p=0.9", "-p", 'logit_bias={"50": -100}', "--extra", "own=[1]",
    )  # fmt: skip
    body = wire.bodies[-1]
    assert {name: body[name] for name in ("temperature", "max_tokens", "seed", "stop", "top_p", "own")} == {
        "temperature": 0.5, "max_tokens": 7, "seed": 3, "stop": ["a", "b"], "top_p": 0.9, "own": [1],
    }  # fmt: skip
    assert body["logit_bias"] == {"50": -100}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ("-p", "tmperature=1"),
            "Did you mean `temperature`? `--extra tmperature=…` sends a field as it is.",
        ),
        (("-p", "top_p=high"), "`top_p='high'`"),
        (("-p", "top_p"), "write NAME=VALUE"),
        (("-p", "temperature=1", "-t", "1"), "`--temperature` and `--param temperature=…` say it twice."),
        (("-p", "top_p=1", "-p", "top_p=1"), "`--param top_p=…` is given twice."),
        (("-t", "-1"), "`temperature=-1.0`"),
        (("--choice", "a", "--regex", "b"), "give one of them"),
        (("--json-schema", "nowhere.json"), "'nowhere.json' cannot be read: No such file or directory."),
        (("--json-schema", "{"), "`json_schema` is not JSON"),
        (("-u", "ftp://x"), "only http and https"),
        (("--dialect", "vlm"), "use one of 'vllm'"),
        (("--timeout", "0"), "must be a positive number"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_sent(args, said, wire):
    done = chat("Hello", *(() if "-u" in args else ("-u", wire.url)), *args)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("myllm: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert wire.seen == []


@pytest.mark.parametrize("args", [(), ("",)])
def test_nothing_to_ask_is_a_mistake(args):
    done = process(*args)
    assert done.returncode == 2
    assert "nothing to ask" in done.stderr


def test_a_refused_connection(free_port):
    done = chat("Hello", "-u", f"localhost:{free_port}", "--timeout", "0.5")
    assert done.exit_code == 3
    assert f"(`myllm serve --port {free_port}`), or check `--url`." in done.stderr


def test_several_dead_servers_are_each_named(free_port):
    done = chat("Hello", "-u", f"localhost:{free_port}", "-u", f"127.0.0.1:{free_port}", "--timeout", "0.5")
    assert done.exit_code == 3
    assert f"[http://localhost:{free_port}]" in done.stderr
    assert f"[http://127.0.0.1:{free_port}]" in done.stderr


def test_a_refused_key_is_never_shown(wire):
    wire.handler = lambda seen, reply: reply.json(
        {"error": {"message": f"bad {seen.headers['authorization']}"}}, 401
    )
    done = chat("Hello", "-u", wire.url, "--api-key", "sesame-9876")
    assert done.exit_code == 4
    assert "sesame" not in done.output
    assert "`--api-key`" in done.stderr


def test_a_page_and_a_404_are_told(wire):
    wire.handler = lambda seen, reply: reply.raw(b"<html>Hi</html>", 200, {"Content-Type": "text/html"})
    page = chat("Hello", "-u", wire.url)
    assert (page.exit_code, "not JSON" in page.stderr) == (1, True)
    wire.handler = lambda seen, reply: reply.json({"detail": "Not Found"}, 404)
    missing = chat("Hello", "-u", wire.url)
    assert (missing.exit_code, "the root of an LLM server" in missing.stderr) == (1, True)


def test_reasoning_goes_to_stderr(openai):
    def answer(body, reply):
        reply.start_stream()
        for piece in (
            event({"reasoning": "Hm, "}),
            event({"reasoning": "easy."}),
            event({"content": "4"}, "stop"),
        ):
            reply.piece(piece)
        reply.piece("data: [DONE]\n\n")
        reply.end_stream()

    wire = openai(answer)
    done = chat("2+2?", "-u", wire.url)
    assert done.stdout == "4\n"
    assert done.stderr == "Hm, easy.\n"
    assert chat("2+2?", "-u", wire.url, "--no-reasoning").stderr == ""


def test_several_answers_and_tool_calls_are_all_shown(openai):
    calls = [{"id": "1", "type": "function", "function": {"name": "now", "arguments": '{"city": "Rome"}'}}]

    def answer(body, reply):
        messages = (
            [{"content": "one"}, {"content": "two"}]
            if body.get("n")
            else [{"content": None, "tool_calls": calls}]
        )
        reply.json(
            {"choices": [{"index": i, "message": m, "finish_reason": "stop"} for i, m in enumerate(messages)]}
        )

    wire = openai(answer)
    assert chat("Hi", "-u", wire.url, "-p", "n=2").stdout == "one\n---\ntwo\n"
    called = chat("Hi", "-u", wire.url, "--no-stream")
    assert json.loads(called.stdout) == {"name": "now", "arguments": '{"city": "Rome"}'}


def test_a_broken_stream_keeps_what_came(openai):
    def answer(body, reply):
        reply.start_stream()
        reply.piece(event({"content": "Once upon"}))
        reply.hang_up()

    done = chat("Hi", "-u", openai(answer).url)
    assert done.exit_code == 1
    assert done.stdout.startswith("Once upon")
    assert "broke off" in done.stderr


def endless(left: threading.Event):
    def answer(body, reply):
        reply.start_stream()
        try:
            while not left.wait(0.005):
                reply.piece(event({"content": "word \n"}))
        except OSError:
            left.set()
            raise

    return answer


def test_a_reader_that_leaves_is_no_error(openai):
    left = threading.Event()
    wire = openai(endless(left))
    command = (
        f"{sys.executable} -m myllm chat Hello -u {wire.url} </dev/null | head -n 1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout == "word \n"
    assert done.stderr == ""
    assert done.returncode == 141
    assert left.wait(5), "the server goes on"


def test_ctrl_c_ends_with_130_and_the_server_stops(openai):
    left = threading.Event()
    wire = openai(endless(left))
    command = [sys.executable, "-m", "myllm", "chat", "Hello", "-u", wire.url]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "word \n"
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=10)
    assert running.returncode == 130
    assert said == ""
    assert left.wait(5)


def test_an_encoding_without_the_answers_letters(openai):
    wire = openai(
        lambda body, reply: reply.json(
            {"choices": [{"message": {"content": "naïve"}, "finish_reason": "stop"}]}
        )
    )
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process("Hi", "--no-stream", "-u", wire.url, env=env)
    assert (done.returncode, done.stdout) == (0, "na?ve\n")
