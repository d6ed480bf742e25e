"""`myllm.Server` with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

import myllm


def wait_until_gone(pid: int, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_it_answers_and_is_gone_after_the_block():
    with myllm.Server("smollm2", api_key="sesame", args=("--max-model-len", "512")) as server:
        pid = server.pid
        assert server.port > 0
        with server.client() as client:
            assert "Paris" in client.chat("What is the capital of France?", max_tokens=20, temperature=0).text
            assert client.models()[0].max_model_len == 512
        with myllm.Client(server.url, api_key="wrong", model="smollm2") as stranger:
            with pytest.raises(myllm.AuthenticationError, match="MYLLM_API_KEY"):
                stranger.chat("x")
        assert "sesame" not in " ".join(psutil.Process(pid).cmdline())
    assert server.pid is None
    assert wait_until_gone(pid, 1)


def test_ipv6_and_keys_in_the_arguments():
    with myllm.Server("smollm2", host="::1", args=("--api-key", "k", "--max-model-len", "256")) as server:
        assert server.url == f"http://[::1]:{server.port}"
        with myllm.Client(server.url, api_key="k") as client:
            assert client.models()


def test_a_model_that_is_not_there_is_said_with_the_server_s_words():
    with pytest.raises(myllm.ServerStartError) as caught:
        myllm.Server("no/such/model.gguf").start()
    assert "no/such/model.gguf" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_taken_port_is_said_at_once(wire):
    start = time.monotonic()
    with pytest.raises(myllm.ServerStartError, match=f"127.0.0.1:{wire.port} cannot be listened on"):
        myllm.Server("smollm2", port=wire.port).start()
    assert time.monotonic() - start < 2


def test_too_slow_a_start_is_an_error_and_leaves_nothing():
    before = set(psutil.Process().children(recursive=True))
    server = myllm.Server("smollm2", startup_timeout=0.5)
    with pytest.raises(myllm.ServerStartError, match="startup_timeout"):
        server.start()
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ready", [False, True])
def test_the_server_goes_with_its_parent_however_that_ends(sign, ready):
    program = textwrap.dedent(
        """
        import sys, time, myllm
        server = myllm.Server("smollm2")
        spawn = server._spawn
        def spawn_and_tell(listener):
            spawn(listener)
            print(server.pid, flush=True)
        server._spawn = spawn_and_tell
        with server:
            print("ready", flush=True)
            time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # As in a terminal: what a shell starts in the background ignores Ctrl-C, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert parent.stdout is not None
    try:
        child = int(parent.stdout.readline())
        if ready:
            assert parent.stdout.readline() == "ready\n"
        else:
            time.sleep(0.3)  # somewhere in its imports
        os.kill(parent.pid, sign)
        assert wait_until_gone(child)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
