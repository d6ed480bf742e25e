"""The page's files and its data, as any HTTP client gets them."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.resources import files

import httpx
import pytest

from myllm_engine.server.http_settings import HttpSettings
from myllm_engine.server.settings import ServerSettings

ASSETS = {file.name for file in (files("myllm_engine.server.ui") / "assets").iterdir()} - {"index.html"}
KEY = {"Authorization": "Bearer k3y"}


def test_the_page_loads_all_of_its_files_and_nothing_else(http):
    page = http.get("/ui").text
    linked = set(re.findall(r'(?:src|href)="(ui/[^"]+)"', page))
    imported = set()
    for name in ASSETS:
        imported |= {f"ui/{file}" for file in re.findall(r'from "\./(.+?)"', http.get(f"/ui/{name}").text)}
    assert linked | imported == {f"ui/{name}" for name in ASSETS}
    assert not re.search(r'(?:src|href)="(?!ui/|docs"|#)', page)
    for name in ASSETS:
        assert set(re.findall(r"https?://[\w.]+", http.get(f"/ui/{name}").text)) <= {
            "http://www.w3.org"
        }  # SVG's name


@pytest.mark.parametrize("name", ["", *sorted(f"/{name}" for name in ASSETS)])
def test_every_file_has_its_type_and_a_policy_that_allows_nothing_else(http, name):
    response = http.get(f"/ui{name}")
    assert response.status_code == 200
    suffix = name.rpartition(".")[2]
    kinds = {"": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    assert response.headers["content-type"].partition(";")[0] == kinds[suffix]
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    head = http.head(f"/ui{name}")
    assert (head.status_code, head.content) == (200, b"")


def test_browsers_are_sent_to_the_page_and_probes_are_not(scripted):
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    settings = ServerSettings(api_keys=("k3y",), http=HttpSettings(root_path="/llm"))
    with scripted(settings=settings) as live:
        for path in ("/", "/llm/"):
            answer = httpx.get(live.url + path, headers=browser)
            assert (answer.status_code, answer.headers["location"]) == (307, "/llm/ui")
            assert httpx.get(live.url + path).status_code == 200
        assert httpx.get(f"{live.url}/ui/", follow_redirects=True).text.startswith("<!doctype html>")
    with scripted(settings=ServerSettings(enable_ui=False)) as live:
        assert httpx.get(live.url, headers=browser).status_code == 200


def test_nothing_but_the_files_is_served(http):
    for path in ("/ui/index.html", "/ui/page.py", "/ui/..%2fpage.py", "/ui/none.js"):
        assert http.get(path).status_code == 404


def test_the_stats_are_the_engines(live, http):
    before = http.get("/ui/stats").json()
    assert before["alive"] is True
    reply = http.post(
        "/v1/completions", json={"prompt": "Once upon a time", "max_tokens": 5, "ignore_eos": True}
    )
    usage = reply.json()["usage"]
    after = http.get("/ui/stats").json()
    assert after["engine"] == asdict(live.engine.stats())
    grown = {name: after["engine"][name] - before["engine"][name] for name in after["engine"]}
    assert grown["generation_tokens_total"] == 5
    assert grown["prompt_tokens_total"] == usage["prompt_tokens"]
    assert after["seconds"] > before["seconds"]
    assert 0 < after["latency"]["between_tokens"]["p50"] <= after["latency"]["between_tokens"]["p95"]
    assert 0 < after["latency"]["first_token"]["p50"] <= after["latency"]["first_token"]["p95"]
    server = after["server"]
    assert server["model"] == live.engine.model_name
    assert server["max_model_len"] == live.engine.max_model_len
    assert server["version"] == http.get("/version").json()["version"]


def test_a_key_opens_the_stats_and_the_page_needs_none(scripted):
    with scripted(settings=ServerSettings(api_keys=("k3y",))) as live:
        for name in ("", *(f"/{name}" for name in ASSETS)):
            assert httpx.get(f"{live.url}/ui{name}").status_code == 200
        assert httpx.get(f"{live.url}/ui/stats").status_code == 401
        assert httpx.get(f"{live.url}/ui/stats", headers=KEY).status_code == 200


def test_a_dead_engine_is_reported(scripted):
    with scripted(error=RuntimeError("died")) as live:
        assert httpx.get(f"{live.url}/ui/stats").json()["alive"] is False


def test_the_page_can_be_left_out(scripted):
    with scripted(settings=ServerSettings(enable_ui=False)) as live:
        for path in ("/ui", "/ui/main.js", "/ui/stats"):
            assert httpx.get(live.url + path).status_code == 404
