"""Fields of requests that nobody knows."""

from __future__ import annotations

import httpx
import pytest

from myllm_engine.server.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "hi", "mood": "good"}], "wholly_unknown": 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi", "wholly_unknown": 1}),
        ("/v1/chat/completions", CHAT),
        ("/invocations", CHAT),
        ("/generate", {"inputs": "hi", "parameters": {"wholly_unknown": 1}}),
    ],
)
def test_unknown_fields_are_passed_over_where_that_is_wanted(scripted, said, path, body):
    script = [said(("ok", b"ok", "stop"))]
    with scripted(script, ServerSettings(allow_unknown_fields=True)) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code == 200, response.text
    with scripted(script) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code in (400, 422)
        assert "Unknown field" in response.text


def test_fields_that_are_known_and_not_offered_are_refused_in_any_case(scripted, said):
    with scripted([said(("ok", b"ok", "stop"))], ServerSettings(allow_unknown_fields=True)) as live:
        response = httpx.post(f"{live.url}/v1/completions", json={"prompt": "hi", "suffix": "ho"})
        assert response.status_code == 400
        assert "`suffix` is not taken" in response.json()["error"]["message"]
