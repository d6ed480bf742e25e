from __future__ import annotations

import base64
import fcntl
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from myllm.cli.run_batch import run_batch

COMMAND = [sys.executable, "-m", "myllm", "run-batch"]
app = typer.Typer()
app.command()(run_batch)


def request(custom_id: str, text: str | None = None, **body) -> dict:
    body = {"messages": [{"role": "user", "content": text or custom_id}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def response_request(custom_id: str, **body) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/responses", "body": body}


def answer(seen, reply) -> None:
    text = seen.body["messages"][0]["content"]
    if text.startswith("bad"):
        reply.json({"error": {"message": "no"}}, status=400)
        return
    reply.json(
        {
            "object": "chat.completion",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    )


class Batch:
    """The files of one batch, and ways to run it."""

    def __init__(self, folder: Path, url: str) -> None:
        self.source = folder / "in.jsonl"
        self.out = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"
        self.arguments = [
            "-i",
            str(self.source),
            "-o",
            str(self.out),
            "--base-url",
            url,
            "--dialect",
            "openai",
        ]
        self.arguments += ["--model", "m", "--retries", "1", "--concurrency", "16"]

    def write(self, *lines: dict | str) -> None:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.source.write_text("".join(f"{text}\n" for text in texts))

    def run(self, *more: str, arguments=None, **options):
        """Run the command in this process."""
        result = CliRunner().invoke(app, [*(arguments or self.arguments), *more], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def start(self, *more: str, **options) -> subprocess.Popen:
        """Start the command in a process of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        return subprocess.Popen([*COMMAND, *self.arguments, *more], **options)

    def answers(self) -> list[dict]:
        return lines_of(self.out)

    def failures(self) -> list[dict]:
        return lines_of(self.errors)


def lines_of(path: Path) -> list[dict]:
    text = path.read_text() if path.exists() else ""
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def ids(lines: list[dict]) -> list[str]:
    return [line["custom_id"] for line in lines]


def content(line: dict) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"]


@pytest.fixture
def job(wire, tmp_path) -> Batch:
    wire.handler = answer
    return Batch(tmp_path, wire.url)


def wait_until(condition, timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


# Plain runs


def test_every_request_becomes_an_answer(job, wire):
    job.write(*(request(str(i)) for i in range(30)), "", "   ")
    done = job.run()
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "30 requests: 30 answered, 0 failed" in done.stderr
    assert "60 tokens" in done.stderr
    assert sorted(ids(job.answers()), key=int) == [str(i) for i in range(30)]
    assert all(content(line) == line["custom_id"] and line["error"] is None for line in job.answers())
    assert not job.errors.exists()
    assert {body["model"] for body in wire.bodies} == {"m"}


def test_completions_and_embeddings(job, wire):
    def handler(seen, reply):
        if seen.path == "/v1/completions":
            reply.json({"object": "text_completion", "choices": [{"text": "t", "finish_reason": "stop"}]})
        else:
            assert seen.path == "/v1/embeddings"
            reply.json({"object": "list", "data": [{"index": 0, "embedding": [0.5]}]})

    wire.handler = handler
    job.write(
        {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "p", "max_tokens": 1},
        },
        {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"input": "text"}},
    )
    assert job.run("--ordered").exit_code == 0
    completion, embedding = job.answers()
    assert completion["response"]["body"]["choices"][0]["text"] == "t"
    assert embedding["response"]["body"]["data"][0]["embedding"] == [0.5]


def test_ordered_output(job, wire):
    def handler(seen, reply):
        time.sleep(random.random() * 0.02)
        answer(seen, reply)

    wire.handler = handler
    job.write(*(request(str(i)) for i in range(40)))
    assert job.run("--ordered", "-c", "8").exit_code == 0
    assert ids(job.answers()) == [str(i) for i in range(40)]


def test_concurrency_is_bounded(job, wire):
    now, most, lock = 0, 0, threading.Lock()

    def handler(seen, reply):
        nonlocal now, most
        with lock:
            now += 1
            most = max(now, most)
        time.sleep(0.02)
        with lock:
            now -= 1
        answer(seen, reply)

    wire.handler = handler
    job.write(*(request(str(i)) for i in range(20)))
    assert job.run("--concurrency", "4").exit_code == 0
    assert most == 4


def test_failed_requests_stand_apart_with_what_is_wrong(job):
    job.write(
        request("good"),
        request("bad"),
        '{"custom_id": "torn", ',
        request("unknown", temprature=1),
        '{"method": "POST"}',
        {**request("url"), "url": "/v1/files"},
        request("last"),
    )
    done = job.run()
    assert done.exit_code == 1
    assert sorted(ids(job.answers())) == ["good", "last"]
    found = {line["error"]["line"]: line for line in job.failures()}
    assert sorted(found) == [2, 3, 4, 5, 6]
    assert found[2]["response"]["status_code"] == 400
    assert found[2]["response"]["body"] == {"error": {"message": "no"}}
    assert "Line 3 is not JSON" in found[3]["error"]["message"]
    assert found[3]["custom_id"] is None
    assert "Did you mean `temperature`" in found[4]["error"]["message"]
    assert "custom_id" in found[5]["error"]["message"]
    assert "/v1/files" in found[6]["error"]["message"]
    assert "7 requests: 2 answered, 5 failed" in done.stderr
    assert str(job.errors) in done.stderr


def test_an_errors_file_of_ones_own(job, tmp_path):
    job.write(request("bad"), request("good"))
    assert job.run("--errors", str(tmp_path / "failed.jsonl")).exit_code == 1
    assert ids(lines_of(tmp_path / "failed.jsonl")) == ["bad"]
    assert not job.errors.exists()


def test_a_summary_for_machines(job):
    job.write(request("1"), request("bad"))
    done = job.run("--json")
    summary = json.loads(done.stdout)
    assert summary.pop("this_run").keys() == {
        "answered",
        "failed",
        "prompt_tokens",
        "completion_tokens",
        "seconds",
    }
    assert summary == {
        "status": "finished",
        "requests": 2,
        "answered": 1,
        "failed": 1,
        "left": 0,
        "output": str(job.out),
        "errors": str(job.errors),
    }


def test_from_stdin_to_stdout(job):
    text = "".join(json.dumps(request(i)) + "\n" for i in ("1", "bad", "3"))
    arguments = ["-i", "-", "-o", "-", *job.arguments[4:]]
    done = job.run(arguments=arguments, input=text)
    assert done.exit_code == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(ids(lines)) == ["1", "3", "bad"]
    mixed = job.run("--json", arguments=arguments, input=text)
    assert (mixed.exit_code, mixed.stdout) == (2, "")
    assert "--json" in mixed.stderr


def test_stdin_into_a_file_can_be_resumed(job, wire):
    text = "".join(json.dumps(request(str(i))) + "\n" for i in range(5))
    arguments = ["-i", "-", *job.arguments[2:]]
    assert job.run(arguments=arguments, input=text).exit_code == 0
    assert job.run(arguments=arguments, input=text).exit_code == 0
    assert len(wire.seen) == len(job.answers()) == 5


def test_a_reader_of_stdout_that_leaves_is_no_traceback(job):
    job.write(*(request(str(i)) for i in range(300)))
    process = subprocess.Popen(
        [*COMMAND, *job.arguments[:2], "-o", "-", *job.arguments[4:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    assert process.wait(10) == 5
    assert "Traceback" not in stderr
    assert "Broken pipe" in stderr


def test_an_empty_input_is_done_at_once(job):
    job.write()
    done = job.run()
    assert done.exit_code == 0
    assert job.out.read_text() == ""
    assert "0 requests" in done.stderr


def test_the_key_goes_to_the_server_and_nowhere_else(job, wire):
    job.write(request("1"), request("bad"))
    done = job.run("--json", env={"MYLLM_API_KEY": "sk-secret"})
    assert {seen.headers["authorization"] for seen in wire.seen} == {"Bearer sk-secret"}
    assert "sk-secret" not in done.output + job.out.read_text() + job.errors.read_text()


# What is refused before anything is sent


@pytest.mark.parametrize("missing", ["source", "folder"])
def test_files_that_cannot_be_opened(job, wire, tmp_path, missing):
    if missing == "folder":
        job.write(request("1"))
        job.arguments[3] = str(tmp_path / "none" / "out.jsonl")
    done = job.run()
    assert done.exit_code == 2
    assert "No such file" in done.stderr
    assert not wire.seen


def test_the_same_custom_id_twice_names_both_lines(job, wire):
    job.write(request("a"), request("b"), request("a", "other"))
    done = job.run()
    assert done.exit_code == 2
    assert "Lines 1 and 3" in done.stderr
    assert "'a'" in done.stderr
    assert not wire.seen


def test_a_file_without_a_single_request(job, wire):
    job.source.write_text('[\n  {"custom_id": "1"}\n]\n')
    job.write("[", "]")
    done = job.run()
    assert done.exit_code == 2
    assert "Line 1" in done.stderr
    assert not wire.seen


def test_the_files_must_differ(job):
    job.write(request("1"))
    before = job.source.read_text()
    job.arguments[3] = str(job.source)
    assert job.run().exit_code == 2
    assert job.run("--no-resume").exit_code == 2
    assert job.source.read_text() == before


@pytest.mark.parametrize("text", ["my precious notes\n", "my precious notes", '{"id": "other"}\n', ""])
def test_an_output_of_something_else_is_left_alone_unless_told(job, text):
    job.write(request("1"))
    job.out.write_text(text)
    if text:
        refused = job.run()
        assert refused.exit_code == 2
        assert "--no-resume" in refused.stderr
        assert job.out.read_text() == text
    assert job.run("--no-resume").exit_code == 0
    assert ids(job.answers()) == ["1"]


def test_no_resume_overwrites_only_what_it_can_do_anew(job, wire):
    job.write(request("1"), request("bad"))
    job.run()
    before = job.out.read_text(), job.errors.read_text()
    good = job.source.read_text()
    job.write(request("1"), request("1"))
    assert job.run("--no-resume").exit_code == 2
    assert (job.out.read_text(), job.errors.read_text()) == before
    job.source.write_text(good)
    assert job.run("--no-resume").exit_code == 1
    assert (ids(job.answers()), ids(job.failures())) == (["1"], ["bad"])
    assert len(wire.seen) == 4


def test_two_runs_on_one_output(job, wire):
    job.write(request("1"))
    with job.out.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = job.run()
    assert done.exit_code == 2
    assert "Another run" in done.stderr
    assert not wire.seen


def test_an_unknown_option_value_is_an_error_of_usage(job):
    job.write(request("1"))
    assert job.run("--base-url", "ftp://x").exit_code == 2
    assert job.run("--concurrency", "0").exit_code == 2
    assert job.run("--dialect", "klingon").exit_code == 2


# Going on


def test_a_finished_batch_is_not_done_again(job, wire):
    job.write(*(request(str(i)) for i in range(5)))
    job.run()
    before = job.out.read_bytes()
    done = job.run("--json")
    assert (done.exit_code, json.loads(done.stdout)["answered"]) == (0, 5)
    assert len(wire.seen) == 5
    assert job.out.read_bytes() == before


def test_failed_requests_are_tried_again_and_their_old_errors_go(job, wire):
    job.write(*(request(f"{kind}{i}") for i in range(3) for kind in ("good", "bad")), "no json")
    assert job.run().exit_code == 1
    assert len(job.failures()) == 4
    wire.seen.clear()
    assert job.run().exit_code == 1
    assert len(wire.seen) == 3
    assert len(job.failures()) == 4

    def mended(seen, reply):
        if "bad2" not in str(seen.body):
            seen.body["messages"][0]["content"] = "mended"
        answer(seen, reply)

    wire.handler = mended
    assert job.run().exit_code == 1
    assert sorted(map(str, ids(job.failures()))) == ["None", "bad2"]
    assert len(job.answers()) == 5
    lines = job.source.read_text().splitlines()
    job.write(*lines[:-2], json.dumps(request("bad2", "fixed")), json.dumps(request("new")))
    assert job.run().exit_code == 0
    assert not job.errors.exists()
    assert len({*ids(job.answers())}) == len(job.answers()) == 7


def test_lines_may_be_added_and_moved_but_not_changed_once_answered(job, wire):
    job.write(request("1"), request("2"))
    job.run()
    job.write(request("0"), request("2"), request("1"), request("3"))
    assert job.run().exit_code == 0
    assert sorted(ids(job.answers())) == ["0", "1", "2", "3"]
    assert len(wire.seen) == 4
    job.write(request("0"), request("1"), request("2", "changed"), request("3"))
    done = job.run()
    assert done.exit_code == 2
    assert "line 3" in done.stderr
    assert "'2'" in done.stderr
    job.write(request("0"), request("1"), request("2"))
    assert "'3'" in job.run().stderr
    job.write(request("0"), request("1"), request("2"), request("3"))
    assert job.run("--model", "another").exit_code == 2
    assert len(wire.seen) == 4


@pytest.mark.parametrize("cut", [1, 2, 40, -5, -1])
def test_a_torn_last_line_is_done_again(job, wire, cut):
    job.write(*(request(str(i)) for i in range(5)))
    job.run()
    whole = job.out.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    job.out.write_bytes(whole[: len(whole) - len(last)] + last[:cut])
    assert job.run().exit_code == 0
    assert sorted(ids(job.answers())) == list("01234")
    # Only the newline was missing: the answer is whole.
    assert len(wire.seen) == (5 if cut == -1 else 6)


def test_a_damaged_line_in_the_middle_is_shown_not_guessed_at(job):
    job.write(*(request(str(i)) for i in range(3)))
    job.run()
    lines = job.out.read_bytes().splitlines(keepends=True)
    job.out.write_bytes(lines[0] + bytes(len(lines[1]) - 1) + b"\n" + lines[2])
    done = job.run()
    assert done.exit_code == 2
    assert "Line 2" in done.stderr
    job.out.write_bytes(lines[0] + lines[0] + lines[2])
    assert "twice" in job.run().stderr


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nothing_is_lost_or_done_twice(job, wire, rounds):
    rng = random.Random(rounds)
    total = rounds * 20
    asked: Counter[str] = Counter()

    def handler(seen, reply):
        asked[seen.body["messages"][0]["content"]] += 1
        time.sleep(rng.random() * 0.01)
        answer(seen, reply)

    wire.handler = handler
    names = [f"{'bad' if i % 17 == 0 else 'good'}{i}" for i in range(total)]
    job.write(*(request(name) for name in names), "no json at all")
    kills = 0
    for _ in range(rounds):
        before, settled = sum(asked.values()), {name: asked[name] for name in finished(job)}
        process = job.start("--concurrency", "8")
        wait = rng.randrange(1, 25)
        wait_until(lambda: process.poll() is not None or sum(asked.values()) >= before + wait)  # noqa: B023
        time.sleep(rng.random() * 0.01)
        process.kill()
        _, stderr = process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert "Traceback" not in stderr
        assert {name: asked[name] for name in settled} == settled, "a request was answered twice"
        if rng.random() < 0.5:  # as if the kill had come in the middle of a write
            tear(job.out, rng)
        if rng.random() < 0.2:
            tear(job.errors, rng)
    assert kills == rounds
    process = job.start("--concurrency", "8")
    _, stderr = process.communicate()
    assert process.returncode == 1, stderr
    good = [name for name in names if name.startswith("good")]
    assert sorted(ids(job.answers())) == sorted(good)
    assert sorted(map(str, ids(job.failures()))) == sorted(["None", *(set(names) - set(good))])
    assert all(content(line) == line["custom_id"] for line in job.answers())
    # A kill costs what was in flight, what was about to be written, and the torn line.
    assert sum(asked[name] for name in good) <= len(good) + rounds * (8 + 8 + 1)


def finished(job: Batch) -> list[str]:
    """Return the ids of the whole lines of an output whose last line may be torn."""
    lines = job.out.read_bytes().splitlines(keepends=True) if job.out.exists() else []
    return [json.loads(line)["custom_id"] for line in lines if line.endswith(b"\n")]


def tear(path: Path, rng: random.Random) -> None:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines:
        size = path.stat().st_size
        os.truncate(path, size - len(lines[-1]) + rng.randrange(len(lines[-1]) - 1))


def test_what_failed_is_tried_after_what_is_new(job, wire):
    job.write(request("bad1"), request("good1"))
    job.run()
    job.write(request("bad1"), request("good1"), request("good2"), request("good3"))
    wire.seen.clear()
    job.run("--concurrency", "1")
    assert [body["messages"][0]["content"] for body in wire.bodies] == ["good2", "good3", "bad1"]


# What goes wrong on the way


def test_ctrl_c_lets_what_is_in_flight_finish(job, wire):
    release = threading.Event()

    def handler(seen, reply):
        release.wait(10)
        answer(seen, reply)

    wire.handler = handler
    job.write(*(request(str(i)) for i in range(50)))
    process = job.start("--concurrency", "4", "--json")
    wait_until(lambda: len(wire.seen) == 4)
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again" in process.stderr.readline()
    release.set()
    stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "Run the same command again" in stderr
    assert len(wire.seen) == len(job.answers()) == 4
    summary = json.loads(stdout)
    assert (summary["status"], summary["answered"], summary["left"]) == ("interrupted", 4, 46)
    assert job.run().exit_code == 0
    assert len(job.answers()) == len(wire.seen) == 50


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_a_second_ctrl_c_or_sigterm_cancels_it(job, wire, signals):
    release = threading.Event()
    wire.handler = lambda seen, reply: release.wait(20) and None
    job.write(*(request(str(i)) for i in range(50)))
    process = job.start("--concurrency", "4")
    wait_until(lambda: len(wire.seen) == 4)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    _, stderr = process.communicate(timeout=5)
    release.set()
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert job.answers() == []


def test_a_server_that_was_never_there_is_said_at_once(job, free_port):
    job.write(*(request(str(i)) for i in range(500)))
    start = time.monotonic()
    job.arguments[5] = f"http://127.0.0.1:{free_port}"
    done = job.run()
    assert time.monotonic() - start < 20
    assert done.exit_code == 3
    assert "or check `--url`" in done.stderr
    assert str(free_port) in done.stderr
    assert "0 answered, 0 failed, 500 left" in done.stderr
    assert job.answers() == job.failures() == []


@pytest.mark.parametrize("status", [502, 504])
def test_servers_that_go_away_do_not_burn_the_file(job, wire, status):
    def handler(seen, reply):
        if len(wire.seen) <= 10:
            answer(seen, reply)
        else:
            reply.json({"error": {"message": "not now"}}, status=status)

    wire.handler = handler
    job.write(*(request(str(i)) for i in range(300)))
    done = job.run("--wait", "0.6", "--concurrency", "4")
    assert done.exit_code == 3
    assert "10 answered, 0 failed, 290 left" in done.stderr
    assert job.failures() == []
    assert len(wire.seen) < 40
    wire.handler = answer
    assert job.run().exit_code == 0
    assert len(job.answers()) == 300


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_waited_for_and_never_called_unreachable(job, wire, status):
    room = threading.Semaphore(2)

    def handler(seen, reply):
        if not room.acquire(blocking=False):
            reply.json({"error": {"message": "full"}}, status=status)
            return
        time.sleep(0.8)
        answer(seen, reply)
        room.release()

    wire.handler = handler
    job.write(*(request(str(i)) for i in range(8)))
    done = job.run("--retries", "0", "--wait", "0.1", "--concurrency", "8")
    assert done.exit_code == 0, done.stderr
    assert "Trying again until there is room" in done.stderr
    assert sorted(ids(job.answers())) == list("01234567")
    assert job.failures() == []


def test_a_request_for_which_there_is_never_room_is_a_failed_one(job, wire):
    def handler(seen, reply):
        if seen.method == "GET":
            reply.json({"object": "list", "data": [{"id": "m"}]})
        elif "huge" in str(seen.body):
            reply.json({"error": {"message": "more tokens than your plan has"}}, status=429)
        else:
            time.sleep(0.1)
            answer(seen, reply)

    wire.handler = handler
    job.write(request("huge"), request("huge2"), request("good"))
    done = job.run("--wait", "0.3", "--retries", "0", "--concurrency", "3")
    assert done.exit_code == 1
    assert (ids(job.answers()), sorted(ids(job.failures()))) == (["good"], ["huge", "huge2"])


def test_requests_in_flight_are_awaited_while_others_are_refused(job, wire):
    def handler(seen, reply):
        if "slow" in str(seen.body):
            time.sleep(1)
            answer(seen, reply)
        else:
            reply.json({"error": {"message": "no backend"}}, status=502)

    wire.handler = handler
    job.write(request("slow"), request("1"), request("2"))
    done = job.run("--retries", "0", "--wait", "0.1", "--concurrency", "3")
    assert done.exit_code == 3
    assert ids(job.answers()) == ["slow"]


def test_ctrl_c_leaves_what_is_refused_and_awaits_the_rest(job, wire):
    def handler(seen, reply):
        if "refused" in str(seen.body):
            reply.json({"error": {"message": "busy"}}, status=429)
        else:
            time.sleep(2)
            answer(seen, reply)

    wire.handler = handler
    job.write(request("refused"), request("a"), request("b"))
    process = job.start("--retries", "0", "--concurrency", "3")
    wait_until(lambda: len(wire.seen) >= 4)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=15)
    assert process.returncode == 130, stderr
    assert (sorted(ids(job.answers())), job.failures()) == (["a", "b"], [])


def test_ordered_answers_behind_a_slow_one_are_written_when_the_run_is_ended(job, wire):
    release = threading.Event()

    def handler(seen, reply):
        if "slow" in str(seen.body):
            release.wait(20)
        else:
            answer(seen, reply)

    wire.handler = handler
    job.write(request("slow"), *(request(str(i)) for i in range(5)))
    process = job.start("--ordered", "--concurrency", "2")
    wait_until(lambda: len(wire.seen) >= 4)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=10)
    release.set()
    assert process.returncode == 130, stderr
    written = ids(job.answers())
    assert written == sorted(written)
    assert set(written) >= {"0", "1", "2"}


def test_a_line_with_a_number_of_too_many_digits_is_a_failed_one(job):
    huge = json.dumps(request("1", seed=7)).replace("7}", "7" * 5000 + "}")
    job.write(huge, request("2"))
    assert job.run().exit_code == 1
    assert ids(job.answers()) == ["2"]
    (failed,) = job.failures()
    assert "Line 1 is not JSON that can be read" in failed["error"]["message"]


def test_stop_strings_that_tgi_shows_are_cut_as_for_other_callers(job, wire):
    wire.handler = lambda seen, reply: reply.json(
        {
            "object": "chat.completion",
            "system_fingerprint": "kept",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "first STOP rest", "tool_calls": None},
                    "finish_reason": "stop_sequence",
                }
            ],
        }
    )
    job.write(request("1", stop=["STOP"]))
    job.arguments[7] = "tgi"
    assert job.run().exit_code == 0
    (line,) = job.answers()
    body = line["response"]["body"]
    assert body["system_fingerprint"] == "kept"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "first ", "tool_calls": None},
            "finish_reason": "stop",
            "stop_reason": "STOP",
        }
    ]


def test_embeddings_are_written_as_they_were_asked_for(job, wire):
    encoded = base64.b64encode(struct.pack("<2f", 0.5, 0.25)).decode()
    wire.handler = lambda seen, reply: reply.json(
        {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": encoded}]}
    )
    body = {"input": [5, 6, 7], "encoding_format": "base64"}
    job.write({"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": body})
    assert job.run().exit_code == 0
    (line,) = job.answers()
    assert line["response"]["body"]["data"][0]["embedding"] == encoded
    assert wire.bodies == [{"model": "m", "input": [[5, 6, 7]], "encoding_format": "base64"}]


def test_servers_that_come_back_are_waited_for(job, wire):
    def handler(seen, reply):
        if 10 < len(wire.seen) <= 20:
            reply.json({"error": {"message": "starting"}}, status=502)
        else:
            answer(seen, reply)

    wire.handler = handler
    job.write(*(request(str(i)) for i in range(40)))
    done = job.run("--concurrency", "4")
    assert done.exit_code == 0
    assert "Trying again for 60 s" in done.stderr
    assert len(job.answers()) == 40


def test_one_request_that_brings_servers_down_does_not_hold_up_the_others(job, wire):
    def handler(seen, reply):
        if "poison" in str(seen.body):
            reply.json({"error": {"message": "worker died"}}, status=502)
        else:
            time.sleep(0.04)
            answer(seen, reply)

    wire.handler = handler
    job.write(request("poison"), *(request(str(i)) for i in range(200)))
    done = job.run("--concurrency", "4", "--wait", "30", "--retries", "0")
    assert done.exit_code == 1
    assert ids(job.failures()) == ["poison"]
    assert len(job.answers()) == 200


def test_the_last_request_that_brings_servers_down_is_a_failed_one(job, wire):
    def handler(seen, reply):
        if seen.method == "GET":
            reply.json({"object": "list", "data": [{"id": "m"}]})
        elif "poison" in str(seen.body):
            reply.json({"error": {"message": "worker died"}}, status=502)
        else:
            time.sleep(0.1)
            answer(seen, reply)

    wire.handler = handler
    job.write(request("poison"), request("good"))
    done = job.run("--wait", "0.3", "--retries", "0", "--concurrency", "2")
    assert done.exit_code == 1
    assert (ids(job.answers()), ids(job.failures())) == (["good"], ["poison"])


def test_a_key_that_is_refused_stops_the_run(job, wire):
    wire.handler = lambda seen, reply: reply.json({"error": {"message": "who?"}}, status=401)
    job.write(*(request(str(i)) for i in range(300)))
    done = job.run("--concurrency", "4")
    assert done.exit_code == 4
    assert "`--api-key`" in done.stderr
    assert "MYLLM_API_KEY" in done.stderr
    assert len(wire.seen) < 10
    assert job.failures() == []


def test_a_full_disk_stops_the_run_with_whole_lines_only(job, wire):
    job.write(*(request(str(i), f"{i} " + "x" * 500) for i in range(100)))

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = job.start("--concurrency", "4", preexec_fn=small_disk)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 5, stderr
    assert "Traceback" not in stderr
    assert str(job.out) in stderr
    written = len(job.answers())
    assert 0 < written < 100
    wire.seen.clear()
    assert job.run().exit_code == 0
    assert len(job.answers()) == 100
    assert len(wire.seen) == 100 - written


def test_help_teaches(job):
    done = job.run(arguments=["--help"])
    assert done.exit_code == 0
    for words in ("custom_id", "Examples", "--base-url", "Exit codes", "--no-resume"):
        assert words in done.stdout


# The real server


def test_against_the_real_server(server, tmp_path):
    job = Batch(tmp_path, server.url)
    del job.arguments[6:8]  # its dialect is found out
    model = job.arguments.index("--model")
    del job.arguments[model : model + 2]
    job.write(
        *(request(str(i), f"Say {i}.", max_tokens=4, temperature=0) for i in range(12)),
        {
            "custom_id": "c",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "One", "max_tokens": 3},
        },
        response_request("r", input="Say hello.", max_output_tokens=3, temperature=0),
        response_request("bad", input="Say hello.", max_tokens=3),
        request("no", top_q=1),
    )
    assert job.run().exit_code == 1
    assert sorted(ids(job.answers())) == sorted([*map(str, range(12)), "c", "r"])
    assert sorted(ids(job.failures())) == ["bad", "no"]
    [refused] = [line for line in job.failures() if line["custom_id"] == "bad"]
    assert refused["response"]["status_code"] == 400
    assert "max_output_tokens" in refused["error"]["message"]
    for line in job.answers():
        body = line["response"]["body"]
        if line["custom_id"] == "r":
            assert body["object"] == "response"
            assert body["usage"]["output_tokens"] == 3
            continue
        assert body["usage"]["completion_tokens"] > 0
        assert body["choices"][0]["finish_reason"] in ("stop", "length")
        assert line["response"]["request_id"]


def test_a_response_is_sent_and_written_as_it_is(job, wire):
    made = {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Hi"}]}],
        "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7},
    }
    wire.answers(made)
    messages, text = [{"role": "user", "content": "x"}], {"format": {"type": "text"}}
    job.write(
        response_request("1", input=messages, text=text, user=None, stream=False),
        response_request("2", input="x", background=True),
        response_request("3", input="x", stream=True),
        response_request("4", instructions="x"),
    )
    summary = json.loads(job.run("--json").stdout)
    [line] = job.answers()
    assert line["response"]["body"] == made
    assert wire.bodies == [{"model": "m", "input": messages, "text": text}]
    said = {line["custom_id"]: line["error"]["message"] for line in job.failures()}
    assert "`background`" in said["2"]
    assert "not streamed" in said["3"]
    assert "object with `input`" in said["4"]
    assert (summary["this_run"]["prompt_tokens"], summary["this_run"]["completion_tokens"]) == (5, 2)


@pytest.mark.slow  # the start of a server; what it does for the run is shown with those that are there
def test_without_a_server_one_is_started_for_the_run(job, monkeypatch, free_port):
    monkeypatch.setattr("myllm.endpoints.DEFAULT_URL", f"http://localhost:{free_port}")
    job.write(
        request("1", "Say hello.", max_tokens=3), response_request("2", input="Hi", max_output_tokens=3)
    )
    arguments = ["-i", str(job.source), "-o", str(job.out), "--model", "smollm2"]
    result = job.run(arguments=arguments)
    assert result.exit_code == 0, result.output
    assert "starting one of 'smollm2' for this run" in result.output
    assert sorted(ids(job.answers())) == ["1", "2"]
    # Nothing is left to do: nothing is started.
    again = job.run(arguments=arguments)
    assert again.exit_code == 0
    assert "starting" not in again.output


def test_a_server_that_cannot_start_is_told(job, monkeypatch, free_port):
    monkeypatch.setattr("myllm.endpoints.DEFAULT_URL", f"http://localhost:{free_port}")
    job.write(request("1"))
    result = job.run(arguments=["-i", str(job.source), "-o", str(job.out), "--model", "/no/such/model"])
    assert result.exit_code == 3
    assert "/no/such/model" in result.output
    assert job.answers() == []


def test_a_server_that_is_there_is_used(job, wire, monkeypatch):
    monkeypatch.setattr("myllm.endpoints.DEFAULT_URL", wire.url)
    job.write(request("1"))
    arguments = ["-i", str(job.source), "-o", str(job.out), "--model", "m", "--dialect", "openai"]
    assert "starting" not in job.run(arguments=arguments).output
    assert content(job.answers()[0]) == "1"
