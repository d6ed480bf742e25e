"""`myllm chat` at a terminal: a conversation through a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest

_END = "<the end>"


class Terminal:
    """`myllm chat ARGS` at a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "myllm", "chat", *args])
        settings = termios.tcgetattr(self._fd)
        settings[3] &= ~termios.ECHO  # what is typed is not shown, so that only the program speaks
        termios.tcsetattr(self._fd, termios.TCSANOW, settings)
        self._seen = ""
        self._ended = False

    def until(self, pattern: str, seconds: float = 20.0) -> str:
        """Return what is said up to a pattern."""
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self._seen)) is None:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{pattern!r} did not come; this did: {self._seen!r}")
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # Linux's word for the end of a terminal
                data = b""
            self._ended = not data
            self._seen += data.decode() or _END
            if not data and pattern != _END:
                raise AssertionError(f"ended before {pattern!r}: {self._seen!r}")
        said, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return said

    def say(self, line: str) -> str:
        """Type a line and return what is said until the next prompt."""
        self.type(line + "\n")
        return self.until(r">>> ")

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self, pattern: str) -> str:
        """Press Ctrl-C until it is answered: Python misses one that comes while readline handles a key."""
        for _ in range(10):
            self.type("\x03")
            try:
                return self.until(pattern, 1.0)
            except TimeoutError:
                continue
        raise AssertionError(f"Ctrl-C brings no {pattern!r}")

    def code(self) -> int:
        """Wait for the end and return the exit code."""
        if not self._ended:
            self.until(_END)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        os.close(self._fd)  # hangs up: the program ends
        if self.pid:
            os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator:
    opened: list[Terminal] = []

    def start(*args: str) -> Terminal:
        opened.append(Terminal(*args))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def model(wire):
    """A server that answers "1", "2", …, and to "endless" with words until the client leaves; see `.left`."""
    wire.left = threading.Event()
    count = iter(range(1, 100))

    def handler(seen, reply):
        if seen.method == "GET":
            listed = [{"id": name, "owned_by": "someone"} for name in ("first", "second")]
            reply.json({"data": listed} if seen.path.endswith("/models") else {}, 200 if listed else 404)
            return
        said = seen.body["messages"][-1]["content"]
        if said == "fail":
            reply.json({"error": {"message": "it is Sunday"}}, 400)
            return
        reply.start_stream()
        if said == "endless":
            try:
                while True:
                    reply.piece(event("word "))
                    time.sleep(0.01)
            except OSError:
                wire.left.set()
                raise
        reply.piece(event(str(next(count)), "stop") + "data: [DONE]\n\n")
        reply.end_stream()

    wire.handler = handler
    return wire


def event(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def asked(model) -> list:
    """The last conversation that the model was sent."""
    return [(m["role"], m["content"]) for m in model.bodies[-1]["messages"]]


def test_a_real_conversation_ends_with_ctrl_d(server, terminal):
    talk = terminal("-u", server.url, "-t", "0", "-n", "12")
    assert f"smollm2 at {server.url} (myllm serve" in talk.until(">>> ")
    assert "Paris" in talk.say("What is the capital of France?")
    talk.type("\x04")
    assert talk.code() == 0


def test_it_remembers_until_told_to_forget(model, terminal):
    talk = terminal("-u", model.url, "--system", "Be brief.")
    talk.until(">>> ")
    assert talk.say("one").startswith("1\r\n")
    talk.say("two")
    assert asked(model) == [
        ("system", "Be brief."), ("user", "one"), ("assistant", "1"), ("user", "two"),
    ]  # fmt: skip
    assert "3" in talk.say("/retry")
    assert asked(model)[-1] == ("user", "two")
    assert len(asked(model)) == 4
    assert "assistant: 3" in talk.say("/history")
    talk.say("/system Be long.")
    talk.say("/clear")
    talk.say("three")
    assert asked(model) == [("system", "Be long."), ("user", "three")]
    talk.type("/exit\n")
    assert talk.code() == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(model, terminal):
    talk = terminal("-u", model.url)
    talk.until(">>> ")
    talk.type("endless\n")
    talk.until("word word")
    talk.interrupt("stopped")
    talk.until(">>> ")
    assert model.left.wait(5), "the server goes on"
    talk.say("next")
    (_, (role, partial), last) = asked(model)
    assert role == "assistant"
    assert partial.startswith("word word")
    assert last == ("user", "next")
    talk.type("half a line")
    assert "Ctrl-C again" in talk.interrupt(">>> ")
    talk.interrupt(_END)
    assert talk.code() == 130


def test_commands(model, terminal, tmp_path):
    talk = terminal("-u", model.url, "-t", "0.5")
    talk.until(">>> ")
    assert "/retry" in talk.say("/help")
    assert "Did you mean /params?" in talk.say("/parms")
    assert "Did you mean 'second'?" in talk.say("/model secnd")
    assert "* second" in talk.say("/model second")
    assert "`top_p=7`" in talk.say("/params top_p=7")
    assert "No closing quotation" in talk.say("/params stop='")
    assert 'stop = ["a b"]' in talk.say("/params seed=3 stop='[\"a b\"]' temperature=")
    talk.say(' /not a command, """ and')
    sent = model.bodies[-1]
    assert {name: sent.get(name) for name in ("model", "seed", "stop", "temperature")} == {
        "model": "second", "seed": 3, "stop": ["a b"], "temperature": None,
    }  # fmt: skip
    assert asked(model)[-1] == ("user", '/not a command, """ and')
    talk.type('"""two\n')
    talk.until(r"\.\.\. ")
    talk.say('lines"""')
    assert asked(model)[-1] == ("user", "two\nlines")
    file = tmp_path / "talk.json"
    assert "4 messages" in talk.say(f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved["model"] == "second"
    assert [m["content"] for m in saved["messages"]][-2:] == ["two\nlines", "2"]
    assert "File exists" in talk.say(f"/save {file}")


def test_a_refusal_is_told_and_its_question_forgotten(model, terminal):
    talk = terminal("-u", model.url)
    talk.until(">>> ")
    assert "it is Sunday" in talk.say("fail")
    talk.say("one")
    assert asked(model) == [("user", "one")]


def test_nobody_to_talk_to(terminal, free_port, wire):
    assert terminal("-u", f"localhost:{free_port}").code() == 3
    wire.handler = lambda seen, reply: reply.json({}, 401)
    assert terminal("-u", wire.url).code() == 4
