"""Conversations as the model sees them."""

from __future__ import annotations

import httpx
import pytest

from myllm_engine.errors import InvalidRequestError

MESSAGES = [
    {"role": "system", "content": "You answer in one word."},
    {"role": "user", "content": "Wie heißt die Hauptstadt?"},
]


# TGI documents the one, and serves the other.
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_conversation_is_shown_as_text_and_tokens(http, engine, method):
    response = http.request(method, "/chat_tokenize", json={"messages": MESSAGES, "max_tokens": 5})
    assert response.status_code == 200
    answer = response.json()
    text = engine.tokenizer.render_chat(MESSAGES)
    assert answer["templated_text"] == text
    tokens = answer["tokenize_response"]
    assert [token["id"] for token in tokens] == engine.tokenizer.encode_chat(MESSAGES)
    content = text.encode()
    assert all(content[token["start"] : token["stop"]].decode() == token["text"] for token in tokens)


def test_messages_that_the_template_refuses_are_a_template_error(scripted):
    with scripted() as live:

        def refuse(messages, **kwargs):
            raise InvalidRequestError("The chat template cannot render these messages: no", param="messages")

        live.engine.tokenizer.render_chat = refuse
        for path, body in (
            ("/chat_tokenize", {"messages": MESSAGES}),
            ("/vertex", {"instances": [{"messages": MESSAGES}]}),
        ):
            response = httpx.post(live.url + path, json=body)
            assert response.status_code == 422
            assert response.json() == {
                "error": "Template error: The chat template cannot render these messages: no",
                "error_type": "template_error",
            }


@pytest.mark.parametrize(
    ("body", "error_type", "says"),
    [
        ({"messages": []}, "validation", "Input validation error: `messages`"),
        ({"messages": MESSAGES, "top_logprobs": 2}, "validation", "Input validation error: `top_logprobs`"),
        ({"messages": MESSAGES, "tools": 5}, "tool_error", "Tool error: `tools`"),
        ({"messages": MESSAGES, "wholly": 5}, "validation", "Input validation error: Unknown field 'wholly'"),
    ],
)
def test_a_wrong_conversation_is_refused_in_tgis_words(http, body, error_type, says):
    response = http.post("/chat_tokenize", json=body)
    assert response.status_code == 422
    assert response.json()["error_type"] == error_type
    assert response.json()["error"].startswith(says)
