"""A whole server, as it is operated: its file, TLS, logs, a socket of its own, and how it goes away."""

from __future__ import annotations

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import trustme

from myllm_engine.server.listen import Listen, StartError, Tls, bind, url

COMMAND = [sys.executable, "-m", "myllm_engine.server", "--kv-cache-memory", "64MiB"]


@contextmanager
def running(*arguments: str):
    """Run a server; yield the process, and its lines: those of the banner, and all that follow."""
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith("Stop it") or '"url"' in line:
                    break
            assert process.poll() is None, "".join(lines)
            reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
            reader.start()
            yield process, lines
        finally:
            process.kill()
            reader.join(10)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path) -> Tls:
    """Files of a certificate for this machine."""
    made = authority.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    for number, blob in enumerate(made.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=number > 0)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return Tls(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem"), str(tmp_path / "ca.pem"))


def trust(authority) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def test_a_server_from_its_file_until_it_drains(authority, certificate, tmp_path):
    (tmp_path / "server.yaml").write_text(
        f"""
        port: 0
        ssl-keyfile: {certificate.keyfile}
        ssl_certfile: {certificate.certfile}
        log-level: info
        log-format: json
        enable-request-id-headers: true
        shutdown-timeout: 60
        root-path: /llm
        """
    )
    with running("--config", str(tmp_path / "server.yaml")) as (process, lines):
        ready = json.loads(lines[-1])
        assert ready["message"].endswith("is ready: SmolLM2-135M-Instruct, served as smollm2")
        assert (ready["with_api_key"], ready["open_to_network"]) == (False, False)
        base = ready["url"].removesuffix("/llm")
        assert re.fullmatch(r"https://127\.0\.0\.1:\d+", base)
        begun, released = threading.Event(), threading.Event()
        chunks = []

        def read() -> None:
            body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
            with httpx.stream(
                "POST",
                f"{base}/v1/completions",
                json=body,
                headers={"X-Request-Id": "mine"},
                verify=trust(authority),
                timeout=60,
            ) as answer:
                assert answer.headers["x-request-id"] == "mine"
                for line in answer.iter_lines():
                    chunks.append(line)
                    begun.set()
                    released.wait(20)  # a client that takes its time

        reading = threading.Thread(target=read)
        reading.start()
        with httpx.Client(base_url=base, verify=trust(authority)) as client:
            assert client.get("/health").status_code == 200
            assert begun.wait(30)
            process.send_signal(signal.SIGTERM)
            # Load balancers learn that they must go elsewhere, by new connections, too.
            end = time.monotonic() + 10
            while httpx.get(f"{base}/health", verify=trust(authority)).status_code != 503:
                assert time.monotonic() < end
            refused = httpx.post(f"{base}/v1/completions", json={"prompt": "x"}, verify=trust(authority))
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "about to end" in refused.json()["error"]["message"]
            assert process.poll() is None
        # Who was there before is answered to the end.
        released.set()
        reading.join(60)
        assert [line for line in chunks if line][-1] == "data: [DONE]"
        assert process.wait(20) == 0
    entries = [json.loads(line) for line in lines]  # each line is an object, from the first one on
    assert entries[0]["message"] == "Loading smollm2 …"
    mine = [entry for entry in entries if entry.get("x_request_id") == "mine"]
    assert {entry["logger"] for entry in mine} == {"uvicorn.access", "myllm_engine.server.generation"}
    assert any(entry["message"] == "request finished" and entry["completion_tokens"] == 200 for entry in mine)
    assert not [entry for entry in entries if entry["level"] == "error"]


@pytest.mark.slow
def test_a_socket_of_the_file_system(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as left:  # by a server that was killed
        left.bind(path)
    with running("--uds", path) as (process, lines):
        assert f"OpenAI    http+unix://{path}:/v1" in "".join(lines)
        transport = httpx.HTTPTransport(uds=path)
        with httpx.Client(transport=transport, base_url="http://x") as client:
            assert client.get("/health").status_code == 200
        with pytest.raises(StartError, match="is in use"):
            bind(Listen(uds=path))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not (tmp_path / "socket").exists()


def test_a_path_that_cannot_be_bound_to(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StartError, match="cannot be bound to: Address already in use"):
        bind(Listen(uds=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(StartError, match="cannot be bound to"):
        bind(Listen(uds=str(tmp_path / "no" / "such" / "folder")))


def test_the_address_for_people():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert url(sock) == f"http://127.0.0.1:{port}"
        assert url(sock, scheme="https") == f"https://127.0.0.1:{port}"


def test_a_name_with_addresses_of_both_kinds_is_that_of_ipv4(monkeypatch):
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with bind(Listen(host="localhost", port=0)) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_certificates_are_checked_before_anything_is_loaded(certificate, tmp_path):
    certificate.check()
    Tls(certificate.keyfile, certificate.certfile, certificate.ca_certs, ssl.CERT_REQUIRED).check()
    (tmp_path / "text.pem").write_text("no key")
    text = str(tmp_path / "text.pem")
    for tls, says in (
        (Tls(certificate.keyfile, None), "name its file with `--ssl-certfile`"),
        (Tls(text, certificate.certfile), "cannot be used"),
        (Tls("/no/such", certificate.certfile), "'/no/such' cannot be used: .*No such file"),
        (Tls(certificate.keyfile, certificate.certfile, text), "`--ssl-ca-certs`"),
        (Tls(certificate.keyfile, certificate.certfile, None, ssl.CERT_REQUIRED), "needs `--ssl-ca-certs`"),
    ):
        with pytest.raises(StartError, match=says) as failed:
            tls.check()
        assert failed.value.exit_code == 2
