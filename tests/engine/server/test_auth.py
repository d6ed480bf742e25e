"""API keys."""

from __future__ import annotations

import httpx
import openai
import pytest

from myllm_engine.server.settings import ServerSettings


@pytest.fixture(scope="module")
def url(scripted, said):
    settings = ServerSettings(api_keys=("first-key", "second-key"))
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        yield live.url


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_a_key_opens_the_server(url, key):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key)
    assert client.completions.create(model="default", prompt="x").choices[0].text == "ok"
    response = httpx.post(f"{url}/generate", json={"inputs": "x"}, headers={"Authorization": f"bearer {key}"})
    assert response.json() == {"generated_text": "ok"}


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer", "Basic first-key", "first-key", "Bearer é"]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
        ("GET", "/v1/unknown"),
        ("POST", "/"),
        ("GET", "/info"),
    ],
)
def test_no_key_no_service(url, method, path, header):
    headers = {} if header is None else {"Authorization": header.encode()}
    # The body is broken: it must not even be looked at.
    response = httpx.request(method, url + path, headers=headers, content=b"{" if method == "POST" else None)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert "Unauthorized" in (error["message"] if path.startswith("/v1") else error)


def test_the_openai_sdk_reads_the_refusal(url):
    with pytest.raises(openai.AuthenticationError, match="Unauthorized"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong").models.list()


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/openapi.json", "/"])
def test_health_needs_no_key(url, path):
    assert httpx.get(url + path).status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/"])
def test_probes_may_ask_for_the_head_alone(url, path):
    response = httpx.head(url + path)
    assert response.status_code == 200
    assert response.content == b""


@pytest.mark.parametrize(
    "key", ["", " ", " padded", "padded ", "two words", "tab\t", "line\n", "schlüssel", "\x7f"]
)
def test_a_key_that_no_client_can_send_is_refused_at_once(key):
    with pytest.raises(ValueError, match="API key 2 of 2") as failure:
        ServerSettings(api_keys=("fine-key", key))
    assert len(key) < 2 or key not in str(failure.value)


def test_settings_do_not_print_their_keys():
    assert "first-key" not in repr(ServerSettings(api_keys=("first-key",)))
