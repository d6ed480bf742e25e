"""Tokens of texts and conversations, and texts of tokens."""

from __future__ import annotations

import httpx
import pytest

from myllm_engine.server.settings import ServerSettings

TEXT = "Grüße, <|im_start|>world 123 😀"
MESSAGES = [{"role": "user", "content": "Hello"}]


def test_a_text_goes_to_tokens_and_back(http, engine):
    answer = http.post("/tokenize", json={"prompt": TEXT}).json()
    expected = engine.tokenizer.encode(TEXT)
    assert answer == {
        "count": len(expected),
        "max_model_len": engine.max_model_len,
        "tokens": expected,
        "token_strs": None,
    }
    assert http.post("/detokenize", json={"tokens": answer["tokens"]}).json() == {"prompt": TEXT}


def test_the_vocabularys_names_are_given(http, engine):
    answer = http.post("/tokenize", json={"prompt": "Hello the world", "return_token_strs": True}).json()
    assert answer["token_strs"] == engine.tokenizer._tokenizer.convert_ids_to_tokens(answer["tokens"])
    assert "Ġthe" in answer["token_strs"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": False},
        {"add_generation_prompt": False, "continue_final_message": True},
    ],
)
def test_a_conversation_is_what_the_chat_endpoint_reads(http, engine, options):
    messages = [*MESSAGES, {"role": "assistant", "content": "Well"}]
    answer = http.post("/tokenize", json={"messages": messages, **options}).json()
    assert answer["tokens"] == engine.tokenizer.encode_chat(messages, **options)
    chat = {"messages": messages, **options, "max_tokens": 0, "return_token_ids": True}
    assert http.post("/v1/chat/completions", json=chat).json()["prompt_token_ids"] == answer["tokens"]


def test_tgis_body_is_answered_in_tgis_shape(http, engine):
    answer = http.post("/tokenize", json={"inputs": TEXT}).json()
    assert [token["id"] for token in answer] == engine.tokenizer.encode(TEXT)
    assert list(answer[0]) == ["id", "text", "start", "stop"]
    response = http.post("/tokenize", json={"inputs": 5})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"


@pytest.mark.parametrize(
    ("path", "body", "param", "says"),
    [
        ("/tokenize", {}, "prompt", "either `prompt` or `messages`"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt", "either"),
        (
            "/tokenize",
            {"prompt": "a", "add_generation_prompt": True},
            "add_generation_prompt",
            "needs `messages`",
        ),
        ("/tokenize", {"prompt": 5}, "prompt", "string"),
        ("/tokenize", {"promt": "a"}, "promt", "did you mean `prompt`?"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model", "does not exist"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ("/tokenize", [], None, "JSON object"),
        ("/detokenize", {}, "tokens", "required"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "from 0 to 49151; got -1"),
        ("/detokenize", {"tokens": [49152]}, "tokens", "from 0 to 49151; got 49152"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "integer"),
    ],
)
def test_what_cannot_be_read_is_refused(http, path, body, param, says):
    response = http.post(path, json=body)
    assert response.status_code == (404 if param == "model" else 400), response.text
    error = response.json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


def test_the_tokenizer_is_described_where_that_is_wanted(http, engine, serve):
    response = http.get("/tokenizer_info")
    assert response.status_code == 404
    assert "--enable-tokenizer-info-endpoint" in response.json()["error"]["message"]
    with serve(ServerSettings(enable_tokenizer_info_endpoint=True)) as live:
        info = httpx.get(f"{live.url}/tokenizer_info").json()
    tokenizer = engine.tokenizer._tokenizer
    assert info["tokenizer_class"] == type(tokenizer).__name__
    assert info["chat_template"] == tokenizer.chat_template
    assert info["eos_token"] == tokenizer.eos_token
