"""Sampling parameters that requests leave out: request > override > the model's own > OpenAI's."""

from __future__ import annotations

import httpx
import pytest

from myllm_engine.server.sampling_defaults import check_override, read_generation_config, sampling_defaults
from myllm_engine.server.settings import ServerSettings

OWN = {"temperature": 0.6, "top_k": 20, "do_sample": True, "eos_token_id": 2, "max_new_tokens": None}
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_later_ones_win_and_names_are_those_of_requests():
    assert sampling_defaults(OWN, {"temperature": 0, "max_new_tokens": 5}) == {
        "temperature": 0,
        "top_k": 20,
        "max_tokens": 5,
    }
    assert sampling_defaults({}) == {}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("settings", "asked", "temperature", "top_k", "max_tokens"),
    [
        ({}, {}, 0.6, 20, None),
        ({}, {"temperature": 0.9, "top_k": -1, "max_tokens": 2}, 0.9, -1, 2),
        ({"generation_config": {}}, {}, 1.0, 0, None),
        ({"generation_config": {"temperature": 0.1}}, {}, 0.1, 0, None),
        ({"override_generation_config": {"temperature": 0.0, "max_new_tokens": 7}}, {}, 0.0, 20, 7),
        ({"override_generation_config": {"temperature": 0.0}}, {"temperature": 0.5}, 0.5, 20, None),
    ],
)
def test_requests(scripted, said, path, settings, asked, temperature, top_k, max_tokens):
    body = {**(CHAT if "chat" in path else {"prompt": "x"}), **asked}
    script = [said(("ok", b"ok", "stop"))]
    with scripted(script, ServerSettings(**settings), generation_config=OWN) as live:
        assert httpx.post(live.url + path, json=body).status_code == 200
        [request] = live.engine.requests
    # Without any limit a completion is OpenAI's 16 tokens long, and a chat as long as the context.
    fallback = 16 if path == "/v1/completions" else None
    assert (request.params.temperature, request.params.top_k) == (temperature, top_k)
    assert request.params.max_tokens == (fallback if max_tokens is None else max_tokens)


def test_a_chat_s_own_limit_wins_under_either_name(scripted, said):
    settings = ServerSettings(override_generation_config={"max_new_tokens": 7})
    with scripted([said(("ok", b"ok", "stop"))], settings) as live:
        httpx.post(f"{live.url}/v1/chat/completions", json={**CHAT, "max_completion_tokens": 3})
        [request] = live.engine.requests
    assert request.params.max_tokens == 3


def test_the_model_s_own_come_with_the_engine(engine):
    # The bundled model's file recommends nothing but what ends a text.
    assert sampling_defaults(engine.generation_config) == {}


def test_files(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"top_p": 0.5}')
    assert read_generation_config(str(tmp_path)) == {"top_p": 0.5}
    assert read_generation_config(str(tmp_path / "generation_config.json")) == {"top_p": 0.5}
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object"):
        read_generation_config(str(tmp_path / "list.json"))


def test_an_override_of_an_unknown_name_is_refused():
    check_override({"temperature": 1, "max_new_tokens": 2})
    with pytest.raises(ValueError, match="holds `zzz`; known are temperature"):
        check_override({"zzz": 1})
