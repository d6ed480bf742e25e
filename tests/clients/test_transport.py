"""Sockets: limits that hold whatever the server does, connections that are used again, TLS and proxies."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import myllm
from myllm import AsyncClient, Client, HTTPOptions, Timeout

ANSWER = {"choices": [{"index": 0, "message": {"content": "Hi"}, "finish_reason": "stop"}]}
BODY = b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class RawServer:
    """Talks to each connection as `talk(connection)` says; counts the connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = 0
        self.talk: Callable[[socket.socket], None] = lambda connection: None
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.open.append(connection)
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client left, as these tests mean it to
            self.talk(connection)

    def close(self) -> None:
        self.listener.close()
        for connection in self.open:
            connection.close()


@pytest.fixture
def raw() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            raise ConnectionError
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    length = next(
        (int(h.split(b":")[1]) for h in head.split(b"\r\n") if h.lower().startswith(b"content-length")), 0
    )
    while len(rest) < length:
        rest += connection.recv(65536)
    return head


def trickling(*pieces: bytes, pause: float, then: bytes = b"") -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        for piece in pieces:
            connection.sendall(piece)
        while True:
            connection.sendall(then)
            time.sleep(pause)

    return talk


TRICKLES = {
    "headers": trickling(b"HTTP/1.1 200 OK\r\n", pause=0.05, then=b"X-A: 1\r\n"),
    "body": trickling(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", pause=0.05, then=b" "),
    "events": trickling(STREAM, pause=0.05, then=chunk(b": keep-alive\n\n")),
    "silence": trickling(pause=0.05),
}


@pytest.mark.parametrize("kind", TRICKLES)
def test_a_deadline_is_exact_whatever_a_server_does(raw, kind):
    raw.talk = TRICKLES[kind]
    with Client(raw.url, model="m", dialect="vllm") as client:
        start = time.monotonic()
        with pytest.raises(myllm.RequestTimeoutError) as caught:
            client.stream_chat("x", timeout=Timeout(total=0.5)).final() if kind == "events" else client.chat(
                "x", timeout=Timeout(total=0.5)
            )
        assert 0.45 < time.monotonic() - start < 0.8
        assert caught.value.phase == "total"
        assert client.endpoints()[0].in_flight == 0


@pytest.mark.parametrize("kind", TRICKLES)
async def test_so_it_is_for_the_async_client(raw, kind):
    raw.talk = TRICKLES[kind]
    async with AsyncClient(raw.url, model="m", dialect="vllm") as client:
        start = time.monotonic()
        with pytest.raises(myllm.RequestTimeoutError) as caught:
            if kind == "events":
                async with client.stream_chat("x", timeout=Timeout(total=0.5)) as stream:
                    await stream.final()
            else:
                await client.chat("x", timeout=Timeout(total=0.5))
        assert 0.45 < time.monotonic() - start < 0.8
        assert caught.value.phase == "total"


def test_headers_alone_are_no_first_byte(raw):
    """A server that accepts a stream at once and thinks for ever is found out by `first_byte`."""
    raw.talk = trickling(STREAM, pause=0.05)
    with Client(raw.url, model="m", dialect="vllm", timeout=Timeout(first_byte=0.3, idle=30)) as client:
        start = time.monotonic()
        with pytest.raises(myllm.RequestTimeoutError, match="first_byte") as caught:
            client.stream_chat("x").final()
        assert 0.25 < time.monotonic() - start < 0.7
        assert caught.value.phase == "first_byte"


def test_a_stream_that_falls_silent_ends_by_idle(raw):
    raw.talk = trickling(STREAM, chunk(EVENT), pause=0.05)
    with Client(raw.url, model="m", dialect="vllm", timeout=Timeout(first_byte=30, idle=0.3)) as client:
        with client.stream_chat("x") as stream:
            assert next(stream).text == "a"
            with pytest.raises(myllm.RequestTimeoutError) as caught:
                next(stream)
        assert caught.value.phase == "idle"
        assert caught.value.partial.text == "a"


def test_a_slow_first_token_is_waited_for_as_long_as_first_byte_says(raw):
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(STREAM)
        time.sleep(0.5)
        done = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
        connection.sendall(chunk(EVENT) + chunk(done) + b"0\r\n\r\n")

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm", timeout=Timeout(first_byte=5, idle=0.2)) as client:
        assert client.stream_chat("x").final().text == "a"


def answering(connection: socket.socket) -> None:
    while True:
        read_request(connection)
        connection.sendall(WHOLE)


def test_a_connection_is_used_again(raw):
    raw.talk = answering
    with Client(raw.url, model="m", dialect="vllm") as client:
        for _ in range(10):
            client.chat("x")
    assert raw.connections == 1


def test_a_stream_s_connection_is_used_again_too(wire):
    ports = set()

    def handler(seen: Any, reply: Any) -> None:
        ports.add(reply._http.client_address[1])
        reply.start_stream()
        reply.piece(EVENT.replace(b'"a"}', b'"a"},"finish_reason":"stop"'))
        reply.piece("data: [DONE]\n\n")
        reply.end_stream()

    wire.handler = handler
    with Client(wire.url, model="m", dialect="vllm") as client:
        for _ in range(5):
            assert client.stream_chat("x").final().text == "a"
    assert len(ports) == 1


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_unnoticed(raw):
    """Between two calls, or in the very moment of the second: the request is sent anew, and is no retry."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(WHOLE)
        read_request(connection)  # the second request is read, and never answered
        connection.close()

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm", max_retries=0) as client:
        assert client.chat("x").text == "Hi"
        assert client.chat("x").text == "Hi"
    assert raw.connections == 2
    assert client.endpoints()[0].failures == 0


def test_a_server_that_refuses_a_large_body_early_is_heard(raw):
    def talk(connection: socket.socket) -> None:
        connection.recv(1000)
        words = b'{"error":{"message":"too large"}}'
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n%s" % (len(words), words))
        time.sleep(0.2)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm") as client:
        with pytest.raises(myllm.APIStatusError, match="too large"):
            client.chat("x" * 3_000_000)


@pytest.mark.parametrize(
    "garbage", [b"\x00\x01\x02nonsense\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", b"HTTP/1.1 999\r\n"]
)
def test_a_server_that_speaks_no_http_is_an_error_that_ends(raw, garbage):
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(garbage)
        connection.close()

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm", max_retries=0) as client:
        with pytest.raises(myllm.MyLLMError) as caught:
            client.chat("x")
        assert caught.value.endpoint == raw.url


def test_an_answer_cut_in_its_middle_is_tried_again(raw):
    cut = [True]

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(WHOLE[:-20] if cut else WHOLE)
        cut.clear()
        connection.close()

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm") as client:
        assert client.chat("x").text == "Hi"
    assert raw.connections == 2


async def test_a_cancelled_stream_closes_its_connection_at_once(raw):
    gone = threading.Event()

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(STREAM + chunk(EVENT))
        if connection.recv(1) == b"":
            gone.set()

    raw.talk = talk
    async with AsyncClient(raw.url, model="m", dialect="vllm") as client:

        async def read() -> None:
            async with client.stream_chat("x") as stream:
                async for _ in stream:
                    pass

        task = asyncio.ensure_future(read())
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(gone.wait, 2)
        assert client.endpoints()[0].in_flight == 0


def test_a_stream_that_nobody_holds_is_closed(raw):
    gone = threading.Event()

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(STREAM + chunk(EVENT))
        if connection.recv(1) == b"":
            gone.set()

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm", max_concurrency=1) as client:
        stream = client.stream_chat("x")
        del stream
        assert gone.wait(2)
        assert client.endpoints()[0].in_flight == 0
        raw.talk = answering
        assert client.chat("x", timeout=2).text == "Hi"  # its place is free again


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost` that nobody has signed but itself, with its key."""
    import subprocess

    path = tmp_path_factory.mktemp("tls") / "server.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(path), "-out", str(path) + ".crt",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + Path(str(path) + ".crt").read_text())
    return path


@pytest.fixture
def https(certificate) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    answering(secure)
            except (OSError, ConnectionError):
                continue

    threading.Thread(target=serve, daemon=True).start()
    yield f"https://localhost:{listener.getsockname()[1]}"
    listener.close()


async def test_tls_is_verified_unless_told_otherwise(https, certificate):
    def client(verify: bool | str) -> dict[str, Any]:
        return {"model": "m", "dialect": "vllm", "http": HTTPOptions(verify=verify), "max_retries": 0}

    with Client(https, **client(True)) as strict, pytest.raises(myllm.ConnectError, match="verify="):
        strict.chat("x")
    for verify in (str(certificate), False):
        with Client(https, **client(verify)) as trusting:
            assert trusting.chat("x").text == "Hi"
        async with AsyncClient(https, **client(verify)) as trusting_too:
            assert (await trusting_too.chat("x")).text == "Hi"
    async with AsyncClient(https, **client(True)) as strict_too:
        with pytest.raises(myllm.ConnectError, match="verify="):
            await strict_too.chat("x")


def test_a_proxy_carries_requests_and_not_those_to_this_machine_unless_named(wire, monkeypatch):
    wire.answers(ANSWER)
    monkeypatch.setenv("HTTP_PROXY", wire.url)
    with Client("http://gpu.example:8000", model="m", dialect="vllm") as client:
        client.chat("x")
    assert wire.seen[0].path == "http://gpu.example:8000/v1/chat/completions"
    with Client("http://127.0.0.1:9", model="m", dialect="vllm", max_retries=0) as client:
        with pytest.raises(myllm.ConnectError):
            client.chat("x")
    assert len(wire.seen) == 1
    proxy = wire.url.replace("http://", "http://user:s3cret@")
    with Client("http://127.0.0.1:9", model="m", dialect="vllm", http=HTTPOptions(proxy=proxy)) as client:
        client.chat("x")
        assert "s3cret" not in repr(client)
    assert wire.seen[1].path == "http://127.0.0.1:9/v1/chat/completions"
    assert wire.seen[1].headers["proxy-authorization"].startswith("Basic ")
    monkeypatch.setenv("NO_PROXY", "gpu.example")
    with Client("http://gpu.example:8000", model="m", dialect="vllm", max_retries=0, timeout=2) as client:
        with pytest.raises(myllm.MyLLMError):
            client.chat("x")
    assert len(wire.seen) == 2


async def test_what_comes_unasked_on_an_idle_connection_is_no_answer(raw):
    """A connection that is out of step is closed: its next answer would be another request's."""

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(WHOLE)
        time.sleep(0.05)
        connection.sendall(WHOLE.replace(b'"Hi"', b'"No"'))
        time.sleep(0.5)

    raw.talk = talk
    async with AsyncClient(raw.url, model="m", dialect="vllm") as client:
        for _ in range(3):
            assert (await client.chat("x")).text == "Hi"
            await asyncio.sleep(0.15)


def test_nor_is_it_for_the_sync_client(raw):
    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(WHOLE)
        time.sleep(0.05)
        connection.sendall(WHOLE.replace(b'"Hi"', b'"No"'))
        time.sleep(0.5)

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm") as client:
        for _ in range(3):
            assert client.chat("x").text == "Hi"
            time.sleep(0.15)


def test_a_host_s_second_address_is_tried_when_the_first_is_a_black_hole(wire, black_hole, monkeypatch):
    wire.answers(ANSWER)
    connect, look_up = socket.create_connection, socket.getaddrinfo

    def connected(address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        # The first address is silent; both have the port of the server that lives.
        return connect(("127.0.0.1", black_hole) if address[0] == "127.0.0.2" else address, *args, **kwargs)

    def looked_up(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host != "two.example":
            return look_up(host, port, *args, **kwargs)
        return [(2, 1, 6, "", (ip, port)) for ip in ("127.0.0.2", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(socket, "create_connection", connected)
    with Client(
        f"http://two.example:{wire.port}", model="m", dialect="vllm", timeout=Timeout(connect=1)
    ) as client:
        assert client.chat("x").text == "Hi"


def test_a_resolver_that_hangs_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    with Client("http://gpu.example:8000", model="m", dialect="vllm", timeout=0.3) as client:
        start = time.monotonic()
        with pytest.raises(myllm.ConnectTimeoutError):
            client.chat("x")
        assert time.monotonic() - start < 1


def test_a_route_that_vanishes_is_a_broken_connection_and_no_limit_of_ours(raw, monkeypatch):
    """The operating system's ETIMEDOUT is Python's TimeoutError too."""
    import errno

    raw.talk = lambda connection: (read_request(connection), time.sleep(5))
    monkeypatch.setattr(
        socket.socket,
        "recv",
        lambda self, size: (_ for _ in ()).throw(TimeoutError(errno.ETIMEDOUT, "timed out")),
    )
    for timeout in (None, 30):
        with Client(raw.url, model="m", dialect="vllm", timeout=timeout, max_retries=0) as client:
            with pytest.raises(myllm.ConnectError, match="broke before"):
                client.chat("x")


async def test_an_answer_that_a_proxy_compressed_is_read(wire):
    import gzip

    body = gzip.compress(BODY)
    wire.handler = lambda seen, reply: reply.raw(
        body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    with Client(wire.url, model="m", dialect="vllm") as client:
        assert client.chat("x").text == "Hi"
    async with AsyncClient(wire.url, model="m", dialect="vllm") as async_client:
        assert (await async_client.chat("x")).text == "Hi"


def test_a_large_event_in_small_pieces_is_read_in_good_time(wire):
    text = "x" * 2_000_000
    event = (
        b'data: {"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":"stop"}]}\n\n' % text.encode()
    )
    pieces = [event[i : i + 1400] for i in range(0, len(event), 1400)]
    wire.streams(*pieces, b"data: [DONE]\n\n")
    with Client(wire.url, model="m", dialect="vllm") as client:
        start = time.process_time()
        assert client.stream_chat("x").final().text == text
        assert time.process_time() - start < 1.5


def test_a_stream_without_an_answer_is_an_error(wire):
    wire.streams("data: [DONE]\n\n")
    with Client(wire.url, model="m", dialect="vllm") as client:
        with pytest.raises(myllm.MyLLMError):
            client.stream_chat("x").final()


def test_connections_that_the_server_closed_do_not_pile_up(raw):
    """A burst makes many; the steady traffic after it uses the newest, and finds the others closed."""
    from concurrent.futures import ThreadPoolExecutor

    import psutil

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        time.sleep(0.05)
        connection.sendall(WHOLE)
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:
                read_request(connection)
                connection.sendall(WHOLE)
                connection.settimeout(3)
        connection.close()

    raw.talk = talk
    with Client(raw.url, model="m", dialect="vllm") as client:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(client.chat, ["x"] * 20))
        time.sleep(0.5)
        for _ in range(25):
            client.chat("x")
        port = int(raw.url.rsplit(":", 1)[1])
        left = [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port]
        assert len([c for c in left if c.status == psutil.CONN_CLOSE_WAIT]) <= 1
