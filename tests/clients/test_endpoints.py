from __future__ import annotations

import pytest

from myllm import Client, Endpoint, HTTPOptions, InvalidParameterError
from myllm.endpoints import endpoints_from, normalize_url, resolve_endpoints


@pytest.mark.parametrize(
    ("url", "port", "expected"),
    [
        ("http://localhost", 8000, "http://localhost:8000"),
        ("localhost", 8000, "http://localhost:8000"),
        ("localhost:8000", None, "http://localhost:8000"),
        ("http://localhost:8000/", None, "http://localhost:8000"),
        ("http://localhost:8000/v1", 8000, "http://localhost:8000"),
        ("http://localhost:8000/v1/", None, "http://localhost:8000"),
        ("https://api.example.com/llm/v1", None, "https://api.example.com/llm"),
        ("http://[::1]", 8000, "http://[::1]:8000"),
        (" http://h:1 ", None, "http://h:1"),
        ("http://h/v100", None, "http://h/v100"),
    ],
)
def test_every_way_to_write_a_server(url, port, expected):
    assert normalize_url(url, port) == expected


@pytest.mark.parametrize(
    ("url", "port", "words"),
    [
        ("ftp://host", None, "scheme"),
        ("http://", None, "not the address of a server"),
        ("http://host:99999", None, "port"),
        ("http://host?x=1", None, "not the address of a server"),
        ("http://localhost:9000", 8000, "another one"),
        ("http://me:secret@host", None, "credentials"),
        ("8000", None, "write http://localhost:8000"),
        ("http://8000", None, "write http://localhost:8000"),
        ("h:1/llm/v1/chat/completions/", None, "leave out '/v1/chat/completions'"),
        ("http://h:1/v1/models", None, "leave out '/v1/models'"),
        (8000, None, "write http://localhost:8000"),
        (Endpoint("http://h:1"), None, "`endpoints=[…]`"),
    ],
)
def test_what_is_no_server_is_refused(url, port, words):
    with pytest.raises(InvalidParameterError) as caught:
        normalize_url(url, port)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_ports_and_urls_multiply_and_arguments_stay():
    ports = [8000, 8001]
    assert [e.url for e in endpoints_from("http://a", ports)] == ["http://a:8000", "http://a:8001"]
    assert ports == [8000, 8001]
    assert [e.url for e in endpoints_from(["a", "b"], 1)] == ["http://a:1", "http://b:1"]
    assert [e.url for e in endpoints_from("a", range(1, 3))] == ["http://a:1", "http://a:2"]


def test_urls_of_a_list_keep_their_own_port():
    assert [e.url for e in endpoints_from(["http://a:7", "http://b"], 8)] == ["http://a:7", "http://b:8"]


@pytest.mark.parametrize("port", [0, 70000, "x", True, [], [8000, None]])
def test_what_is_no_port_is_refused(port):
    with pytest.raises(InvalidParameterError, match="`port"):
        endpoints_from("http://a", port)


def test_the_environment_fills_in():
    env = {"MYLLM_BASE_URL": "http://mine:1", "OPENAI_BASE_URL": "http://other:2", "MYLLM_API_KEY": "k"}
    assert resolve_endpoints(None, None, env) == (Endpoint("http://mine:1", "k"),)
    assert resolve_endpoints("http://said:3", "x", env) == (Endpoint("http://said:3", "x"),)
    assert resolve_endpoints(None, None, {}) == (Endpoint("http://localhost:8000"),)
    # A port alone is this machine's, whatever server the environment names; its key is asked for there too.
    assert resolve_endpoints(None, None, env, port=5) == (Endpoint("http://localhost:5", "k"),)
    assert resolve_endpoints("http://said", "x", env, port=5) == (Endpoint("http://said:5", "x"),)


def test_openai_s_key_goes_to_openai_s_url_only():
    env = {"OPENAI_BASE_URL": "http://other:2", "OPENAI_API_KEY": "theirs"}
    assert resolve_endpoints(None, None, env)[0].api_key == "theirs"
    assert resolve_endpoints("http://localhost:8000", None, env)[0].api_key is None


def test_a_key_is_not_in_the_repr():
    assert "hush" not in repr(Endpoint("http://a", "hush"))


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:1", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:8", True),
        ("http://0.0.0.0:8", True),
        ("http://10.0.0.1", False),
    ],
)
def test_loopback(url, loopback):
    assert Endpoint(url).is_loopback is loopback


def test_an_endpoint_is_normal_however_it_is_made():
    assert Endpoint("localhost:8000/v1/").url == "http://localhost:8000"
    with pytest.raises(InvalidParameterError, match="credentials"):
        Endpoint("http://me:secret@host")


@pytest.mark.parametrize("url", ["http://[bad", "http://h/v1?api_key=secret", "http://me:secret@h?x"])
def test_a_bad_address_is_typed_and_shows_no_secret(url):
    with pytest.raises(InvalidParameterError) as caught:
        normalize_url(url)
    assert "secret" not in str(caught.value)


def test_no_endpoints_is_an_error():
    with pytest.raises(InvalidParameterError, match="empty list"):
        Client(endpoints=[])


def test_a_bad_proxy_is_typed_and_shows_no_secret():
    with pytest.raises(InvalidParameterError) as caught:
        HTTPOptions(proxy="user:secret@host:1")
    assert "secret" not in str(caught.value)


def test_an_empty_variable_is_none():
    (endpoint,) = resolve_endpoints(None, None, {"MYLLM_BASE_URL": "", "OPENAI_BASE_URL": "http://a:1/v1"})
    assert endpoint.url == "http://a:1"
