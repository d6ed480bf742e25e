"""Texts split into tokens, as TGI shows them."""

from __future__ import annotations

TEXT = "Grüße, 世界! 👩‍👩‍👧 1234"


def test_tokens_have_their_places_in_the_bytes(http, engine):
    tokens = http.post("/tokenize", json={"inputs": TEXT}).json()
    assert [token["id"] for token in tokens] == engine.tokenizer.encode(TEXT)
    content = TEXT.encode()
    for token in tokens:
        assert content[token["start"] : token["stop"]].decode() == token["text"]
    assert tokens[0]["start"] == 0
    assert tokens[-1]["stop"] == len(content)
    assert "世" in {token["text"] for token in tokens}


def test_plain_text_is_shown_without_its_blanks(http, engine):
    text = "The quick brown fox, 123."
    tokens = http.post("/tokenize", json={"inputs": text}).json()
    # The tokenizer counts a blank to the token after it, and leaves it out of the token's place.
    assert [token["text"] for token in tokens] == [
        engine.tokenizer.token_text(token["id"]).strip() for token in tokens
    ]
    assert all(token.keys() == {"id", "text", "start", "stop"} for token in tokens)


def test_a_lone_surrogate_is_refused(http):
    content = b'{"inputs": "\\ud800"}'
    response = http.post("/tokenize", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["error_type"] == "validation"
