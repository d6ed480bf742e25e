"""What a server fetches for strangers: from public hosts alone, whatever their names and redirects say."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from myllm_engine.server.fetch import Fetcher, FetchError, is_public

PAGES: dict[str, tuple[int, dict[str, str], bytes]] = {
    "/image": (200, {}, b"image"),
    "/large": (200, {}, b"x" * 2000),
    "/none": (404, {}, b""),
    "/relative": (302, {"Location": "/image"}, b""),
    "/other-host": (307, {"Location": "http://other.test:{port}/image"}, b""),
    "/private": (301, {"Location": "http://inner.test:{port}/image"}, b""),
    "/literal": (302, {"Location": "http://127.0.0.2:{port}/image"}, b""),
    "/file": (302, {"Location": "file:///etc/passwd"}, b""),
    "/loop": (302, {"Location": "/loop"}, b""),
}
# Names of this test's internet: 127.0.0.1 is public there, and the rest of the loopback network is not.
HOSTS = {
    "images.test": ["127.0.0.1"],
    "cdn.images.test": ["127.0.0.1"],
    "other.test": ["127.0.0.1"],
    "inner.test": ["127.0.0.2"],
    "mixed.test": ["127.0.0.1", "127.0.0.2"],
    "127.0.0.2": ["127.0.0.2"],
    "closed.test": ["127.0.0.1"],
}


class Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        hits.append((self.client_address[0], self.headers["Host"], self.path))
        if self.path == "/slow":
            time.sleep(1)
        status, headers, body = PAGES.get(self.path, (200, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value.format(port=self.server.server_address[1]))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


hits: list[tuple[str, str, str]] = []


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("0.0.0.0", 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()


async def lookup(host: str, port: int) -> Sequence[str]:
    if host not in HOSTS:
        raise OSError("no such host")
    return HOSTS[host]


def fetcher(**options: object) -> Fetcher:
    defaults = {"max_bytes": 1000, "seconds": 5.0, "allowed": lambda ip: ip == "127.0.0.1", "resolve": lookup}
    return Fetcher(**{**defaults, **options})  # type: ignore[arg-type]


async def test_bodies_and_redirects(port: int):
    base = f"http://images.test:{port}"
    for path in ("/image", "/relative", "/other-host"):
        assert await fetcher().fetch(base + path) == b"image"
    assert hits[-1][1:] == (f"other.test:{port}", "/image")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://inner.test:{port}/image", "'inner.test' is not the name of a public host"),
        ("http://127.0.0.2:{port}/image", "'127.0.0.2' is not the name of a public host"),
        ("http://mixed.test:{port}/image", "'mixed.test' is not the name of a public host"),
        ("http://images.test:{port}/private", "'inner.test' is not the name of a public host"),
        ("http://images.test:{port}/literal", "'127.0.0.2' is not the name of a public host"),
        ("http://images.test:{port}/file", "only `http` and `https`"),
        ("http://images.test:{port}/loop", "more than 3 redirects"),
        ("http://images.test:{port}/large", "larger than 1000 bytes"),
        ("http://images.test:{port}/none", "images.test answers with the status 404"),
        ("http://user:pw@images.test:{port}/image", "holds a user name"),
        ("http://nowhere.test/image", "'nowhere.test' cannot be resolved"),
        ("http://closed.test:1/image", "'closed.test' cannot be reached"),
        ("http://images.test:99999/", "not valid"),
        ("https://images.test:{port}/image", "connection failed"),
    ],
)
async def test_what_is_not_fetched(port: int, url: str, message: str):
    before = len(hits)
    with pytest.raises(FetchError, match=message):
        await fetcher().fetch(url.format(port=port))
    # Nobody inside was asked.
    assert all(host.startswith("images.test") for _, host, _ in hits[before:])


async def test_a_name_that_changes_its_address_is_resolved_once(port: int):
    """DNS rebinding: the first answer is checked and used, a second is never asked for."""
    answers = iter([["127.0.0.1"], ["127.0.0.2"]])

    async def rebind(host: str, port: int) -> Sequence[str]:
        return next(answers)

    assert await fetcher(resolve=rebind).fetch(f"http://evil.test:{port}/image") == b"image"
    assert next(answers) == ["127.0.0.2"]


async def test_only_listed_domains(port: int):
    listed = fetcher(domains=["Images.test"])
    for host in ("images.test", "cdn.images.test", "IMAGES.test"):
        HOSTS.setdefault(host, ["127.0.0.1"])
        assert await listed.fetch(f"http://{host}:{port}/image") == b"image"
    for url in (f"http://other.test:{port}/image", f"http://images.test:{port}/other-host"):
        with pytest.raises(FetchError, match=r"'other.test' is not among those"):
            await listed.fetch(url)
    with pytest.raises(FetchError, match="'evilimages.test' is not among those"):
        await listed.fetch("http://evilimages.test/image")


async def test_it_ends_in_time(port: int):
    started = time.monotonic()
    with pytest.raises(FetchError, match=r"longer than 0.2 s"):
        await fetcher(seconds=0.2).fetch(f"http://images.test:{port}/slow")
    assert time.monotonic() - started < 1


async def test_this_machine_is_not_public(port: int):
    """Without the test's own internet: the resolver and the check as they are in a server."""
    real = Fetcher(max_bytes=1000, seconds=5)
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        with pytest.raises(FetchError, match="is not the name of a public host|cannot be resolved"):
            await real.fetch(f"http://{host}:{port}/image")
    with pytest.raises(FetchError, match="cannot be resolved"):
        await real.fetch(f"http://{'a' * 64}.test/image")


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1",
        "fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
        "2002:7f00:1::", "2001:0:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_inner_addresses(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses(address: str):
    assert is_public(address)
