"""The server's limits hold in every dialect."""

from __future__ import annotations

import httpx
import pytest

from myllm_engine.server.settings import ServerSettings

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
GRAMMAR = {"inputs": "hi", "parameters": {"grammar": {"type": "regex", "value": "a"}}}


def words(response: httpx.Response) -> str:
    error = response.json()["error"]
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/generate", {"inputs": "x" * 21}, 422, "`inputs` must have less than 20 tokens. Given: 21"),
        (
            "/generate",
            {"inputs": "x", "parameters": {"truncate": 21}},
            422,
            "`truncate` must be strictly positive and less than 20. Given: 21",
        ),
        ("/v1/completions", {"prompt": "x" * 21}, 400, "has 21 tokens, and this server takes 20 at most"),
        ("/v1/completions", {"prompt": ["x", "x" * 21]}, 400, "(its --max-input-tokens)"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * 20}]},
            400,
            "has 27 tokens, and this server takes 20",
        ),
    ],
)
def test_prompts_are_as_short_as_the_server_says(scripted, said, path, body, status, says):
    settings = ServerSettings(max_input_tokens=20)
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code == status
        assert says in words(response)
        assert httpx.post(f"{live.url}/generate", json={"inputs": "x" * 20}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate", GRAMMAR, 422),
        ("/v1/completions", {"prompt": "hi", "guided_choice": ["a"]}, 400),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, 400),
    ],
)
def test_constraints_can_be_switched_off(scripted, said, path, body, status):
    settings = ServerSettings(disable_grammar_support=True)
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        response = httpx.post(live.url + path, json=body)
        assert response.status_code == status
        assert words(response).endswith("grammar is not supported")
        assert live.engine.requests == []
