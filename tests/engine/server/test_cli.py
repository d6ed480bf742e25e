"""The command: what it says to mistakes, how it starts and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import psutil
import pytest

from myllm_engine.config import EngineConfig
from myllm_engine.server.listen import Listen, StartError, bind
from myllm_engine.server.run import banner
from myllm_engine.server.settings import ServerSettings

COMMAND = [sys.executable, "-m", "myllm_engine.server"]
SMALL = ["--kv-cache-memory", "64MiB"]
STUCK = {"prompt": "x", "guided_regex": "a"}  # for a server that is `stuck`


def fail(*arguments: str, **options) -> tuple[int, str]:
    """Run a server that cannot start; return its exit code and what it says."""
    done = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.returncode, done.stderr


@contextmanager
def running(*arguments: str, **options):
    """Run a server; yield the process, its URL once it is ready, and what it wrote until then."""
    process = subprocess.Popen([*COMMAND, *SMALL, *arguments], stderr=subprocess.PIPE, text=True, **options)
    try:
        lines = []
        url = None
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"OpenAI +(http://\S+)/v1", line):
                url = match[1]
            if line.startswith("Stop it"):
                break
        assert url, "".join(lines)
        # A full pipe would block the server.
        threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True).start()
        yield process, url, lines
    finally:
        process.kill()
        process.wait()


def test_the_command_is_imported_without_torch_or_http():
    code = (
        "import sys, myllm_engine.server.cli, myllm_engine.server.run, myllm_engine.server.lifetime;"
        "print({'torch', 'transformers', 'fastapi', 'uvicorn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_names_of_vllm_s_module_start_it_too():
    command = [sys.executable, "-m", "myllm_engine.entrypoints.openai.api_server", "--no_such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such option: --no-such" in done.stderr


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [("127.0.0.1", (), False), ("0.0.0.0", (), True), ("0.0.0.0", ("key",), False), ("::1", (), False)],
)
def test_the_banner_warns_of_an_open_server(host, keys, warns):
    engine = SimpleNamespace(
        config=EngineConfig(),
        model_name="M",
        max_model_len=8,
        device="cpu",
        dtype="float32",
        stats=lambda: SimpleNamespace(kv_pages_total=2),
    )
    try:
        sock = bind(Listen(host=host, port=0))
    except StartError:
        pytest.skip("this machine has no IPv6")
    with sock:
        text = banner(engine, ServerSettings(api_keys=keys), sock, "1.0")
    assert ("Anyone on the network" in text) is warns
    assert "http://[::1]:" in text if host == "::1" else "http://127.0.0.1:" in text
    assert "2 pages of 16 tokens (32 tokens)" in text


def test_a_taken_port_is_told_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, said = fail("--port", str(port))
    assert code == 1
    assert said.startswith(f"myllm serve: Port {port} on 127.0.0.1 is in use")
    assert "--port" in said


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["/no/such/folder", "--port", "0"], 1, "/no/such/folder"),
        (["--dtype", "int3"], 2, "`dtype` must be one of"),
        (["--kv-cache-memory", "lots"], 2, "is not a size"),
        (["a", "--model", "b"], 2, "Two models"),
        (["--log-level", "loud"], 2, "`--log-level`"),
        (["--host", "203.0.113.7"], 2, "is not an address of this machine"),
        (["--fd", "77"], 2, "`--fd` 77 is not an open file descriptor"),
        (["--fd", "0"], 2, "`--fd` 0 is not a socket"),
        (["--port", "many"], 2, "--port"),
        (["--api-key="], 2, "API key 1 of 1 is empty"),
        (["--shutdown-timeout", "inf"], 2, "`--shutdown-timeout` must be between 0 and 86400 seconds"),
        (["--shutdown-timeout", "nan", "--exit-with-parent"], 2, "`--shutdown-timeout` must be"),
        (["--max-body-size", "lots"], 2, "is not a size"),
        (["--max-body-size", "0"], 2, "`max_body_size`"),
        (["--quantization", "int3"], 2, "`quantization` must be one of"),
        (["--speculative-config", "ngram"], 2, "`--speculative-config` is not JSON"),
        (["--lora-modules", "sql"], 2, "`--lora-modules` must be NAME=PATH; got 'sql'"),
        (["--lora-modules", "a=x", "--lora-modules", "b=y", "--max-loras", "1"], 2, "has no room for 2"),
    ],
)
def test_mistakes_are_one_readable_message(arguments, code, says):
    returncode, said = fail(*arguments, stdin=subprocess.DEVNULL)
    assert returncode == code
    assert says in said


def test_a_json_log_has_mistakes_as_entries():
    code, said = fail("/no/such/folder", "--port", "0", "--log-format", "json", "--swap-space", "4")
    assert code == 1
    note, loading, failure = map(json.loads, said.splitlines())
    assert (note["level"], loading["level"], failure["level"]) == ("warning", "info", "error")
    assert "/no/such/folder" in failure["message"]


@pytest.mark.parametrize(
    ("variable", "value"), [("MYLLM_API_KEY", "  "), ("VLLM_API_KEY", ""), ("API_KEY", "")]
)
def test_a_variable_without_a_key_does_not_open_the_server(variable, value):
    code, said = fail(env={**os.environ, variable: value})
    assert code == 2
    assert f"The variable {variable} is set but holds no key" in said


def test_missing_libraries_are_named(tmp_path):
    # A finder that hides torch, as in an environment without the engine extra.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(
            """
            import importlib.util
            find = importlib.util.find_spec
            importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
            """
        )
    )
    code, said = fail(env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert code == 1
    assert "torch is not installed: pip install 'myllm-suite[engine]'" in said


def test_serve_on_an_inherited_socket_until_sigterm():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        host, port = sock.getsockname()
        environment = {**os.environ, "MYLLM_API_KEY": "one two"}
        arguments = ["--fd", str(sock.fileno()), "--served-model-name", "mine", "--log-level", "info"]
        arguments += ["--shutdown-timeout", "1"]
        with running(*arguments, pass_fds=[sock.fileno()], env=environment) as (process, url, lines):
            sock.close()
            assert url == f"http://{host}:{port}"
            banner = "".join(lines)
            assert "SmolLM2-135M-Instruct, served as mine, with an API key" in banner
            assert "TGI " in banner
            headers = {"Authorization": "Bearer two"}
            assert httpx.get(f"{url}/v1/models").status_code == 401
            models = httpx.get(f"{url}/v1/models", headers=headers).json()
            assert [model["id"] for model in models["data"]] == ["mine"]

            # A stream that is longer than the grace ends with an event that says why.
            body = {"prompt": "Secret words", "max_tokens": 1000, "ignore_eos": True, "stream": True}
            with httpx.stream(
                "POST", f"{url}/v1/completions", json=body, headers=headers, timeout=30
            ) as response:
                chunks = (line for line in response.iter_lines() if line)
                next(chunks)
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                *_, last, done = chunks
            assert done == "data: [DONE]"
            assert "The engine has stopped" in json.loads(last.removeprefix("data: "))["error"]["message"]
            assert process.wait(15) == 0
            assert 0.9 < time.monotonic() - started < 8
    log = "".join(lines)
    assert re.search(r"request aborted request_id=cmpl-\w+-0-\w+ prompts=1 prompt_tokens=2 ", log)
    assert "Secret words" not in log
    assert "two" not in log
    assert "Traceback" not in log


def test_the_server_dies_with_its_parent():
    code = textwrap.dedent(
        f"""
        import subprocess, time
        server = subprocess.Popen({[*COMMAND, *SMALL, "--port", "0", "--exit-with-parent"]!r}, stdin=subprocess.PIPE)
        print(server.pid, flush=True)
        time.sleep(600)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    server = psutil.Process(int(parent.stdout.readline()))
    try:
        for line in parent.stderr:
            if line.startswith("Stop it"):
                break
        assert server.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        # Not our child: the exit code is not to be had, but that it is gone is.
        server.wait(10)
    finally:
        for process in (parent, server):
            if process.poll() is None if isinstance(process, subprocess.Popen) else process.is_running():
                process.kill()


def test_a_parent_that_dies_during_the_load_takes_the_server_along():
    process = subprocess.Popen([*COMMAND, "--port", "0", "--exit-with-parent"], stdin=subprocess.PIPE)
    time.sleep(1)
    process.stdin.close()
    assert process.wait(10) == -signal.SIGTERM


def test_ctrl_c_lets_requests_finish():
    with running("--port", "0", "--shutdown-timeout", "60") as (process, url, lines):
        answers = []
        body = {"prompt": "Once", "max_tokens": 24, "ignore_eos": True}
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=body, timeout=30))
        )
        asking.start()
        time.sleep(0.3)
        # Nested deeper than a stack of the usual size holds while it is compiled.
        schema = {"const": "x"}
        definitions = {}
        for index in range(60):
            definitions[f"d{index}"] = schema
            schema = {"$ref": f"#/$defs/d{index}"}
            for _ in range(45):
                schema = {"items": schema}
        structured = {"prompt": "x", "max_tokens": 1, "guided_json": {"$defs": definitions, **schema}}
        assert httpx.post(f"{url}/v1/completions", json=structured, timeout=30).status_code in (200, 400)
        process.send_signal(signal.SIGINT)
        asking.join()
        assert answers[0].json()["usage"]["completion_tokens"] == 24
        # Nothing is left to wait for: the grace is not used up.
        assert process.wait(20) == 0
    # Quiet by default: a line while the model is loaded, and the banner.
    assert lines.pop(0) == "Loading smollm2 …\n"
    assert len([line for line in lines if not re.match(r"\S+ \S+ WARNING", line)]) == 9


@contextmanager
def stuck(tmp_path, *, error: str = "None", shutdown_timeout: float = 0.1):
    """Run a server whose engine takes for ever to compile a constraint, and to close; with a request in it."""
    script = tmp_path / "serve.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import sys
            import time
            from types import SimpleNamespace
            from myllm_engine.config import EngineConfig
            from myllm_engine.server import run
            from myllm_engine.server.settings import ServerSettings
            from myllm_engine.server.workers import Workers

            workers = Workers("compile", threads=1, waiting=0)
            engine = SimpleNamespace(
                config=EngineConfig(), model_name="M", max_model_len=99, device="cpu", dtype="float32", error={error},
                tokenizer=SimpleNamespace(encode=lambda text, **_: [1]),
                stats=lambda: SimpleNamespace(kv_pages_total=2),
                prepare=lambda request: workers.run(time.sleep, 600),
                generation_config=dict(), loras=dict(), add_observer=lambda observer: None, remove_observer=lambda observer: None,
                close=lambda: time.sleep(600),
            )
            run._load = lambda config: engine
            sys.exit(
                run.run(engine.config, ServerSettings(), run.Listen(port=0), shutdown_timeout={shutdown_timeout})
            )
            """
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, text=True)
    try:
        url = next(
            match[1] for line in process.stderr if (match := re.search(r"OpenAI +(http://\S+)/v1", line))
        )
        yield process, url
    finally:
        process.kill()


@pytest.mark.parametrize(("error", "code"), [("None", 0), ("MemoryError()", 1)])
def test_neither_a_thread_that_hangs_nor_a_dead_engine_keeps_the_server_from_ending(tmp_path, error, code):
    with stuck(tmp_path, error=error) as (process, url):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=STUCK, timeout=0.5)
        assert httpx.get(f"{url}/health").status_code == (503 if code else 200)
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == code


def test_the_second_ctrl_c_waits_for_nobody(tmp_path):
    with stuck(tmp_path, shutdown_timeout=60) as (process, url):
        answers = []
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/completions", json=STUCK, timeout=30))
        )
        asking.start()
        while httpx.get(f"{url}/load").json() != {"server_load": 1}:
            time.sleep(0.02)
        # Supervisors and terminals may send SIGTERM along with it, and more than once: that is no haste.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.2)
        assert httpx.get(f"{url}/health").status_code == 503
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 0
        asking.join(10)
        assert answers[0].status_code == 500
