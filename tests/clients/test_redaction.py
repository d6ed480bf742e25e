"""Secrets: found in what is sent, and gone from every error, whichever way a server repeats them."""

from __future__ import annotations

import base64
import json

import pytest

import myllm
from myllm.redaction import scrubbed, secrets_of
from myllm.transport.options import HTTPOptions

AWKWARD = ["pk/abcdef123456+xyz", 'pw"quote\\back12', "key&with<angle>12", "pass wörd-123"]


def escaped(text: str) -> list[str]:
    """The ways in which JSON may write a text."""
    plain = json.dumps(text)
    return [
        plain,
        json.dumps(text, ensure_ascii=False),
        plain.replace("/", "\\/"),  # PHP's
        plain.replace("&", "\\u0026").replace("<", "\\u003C").replace(">", "\\u003e"),  # Go's
    ]


def raised(client: myllm.Client, *, stream: bool = False) -> myllm.MyLLMError:
    with client, pytest.raises(myllm.MyLLMError) as caught:
        client.stream_chat("x").final() if stream else client.chat("x")
    return caught.value


def told(exc: myllm.MyLLMError) -> str:
    return f"{exc} {exc!r} {exc.__dict__}"


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("key", [key for key in AWKWARD if key.isascii()])
def test_no_escape_hides_a_key(wire, key, status):
    for text in escaped(key):
        for body in (f'{{"error": {{"message": {text}, "seen": [{text}]}}}}', f"no JSON: {text}", "{" + text):
            wire.handler = lambda seen, reply, body=body: reply.raw(body.encode(), status)
            exc = raised(myllm.Client(wire.url, model="m", dialect="openai", api_key=key, max_retries=0))
            assert "…" in told(exc)
            assert not [spelling for spelling in (key, text[1:-1]) if spelling in told(exc)]


@pytest.mark.parametrize(
    "client",
    [
        {"headers": {"Ocp-Apim-Subscription-Key": "hunter2secret"}},
        {"headers": {"X-Functions-Key": "hunter2secret"}},
        {"headers": {"Authorization": "Basic " + base64.b64encode(b"ann:hunter2secret").decode()}},
        {"http": HTTPOptions(auth=("ann", "hunter2secret"))},
        {"api_key": "hunter2secret"},
    ],
)
@pytest.mark.parametrize("path", ["status", "text", "shape", "models", "stream"])
def test_no_path_of_an_error_tells(wire, client, path):
    words = "hunter2secret is no good"
    event = {"choices": []} if path == "models" else {"error": {"message": words, "code": 401}}
    named = {} if path == "models" else {"model": "m"}
    if path == "stream":
        wire.streams(f"data: {json.dumps(event)}\n\n")
    elif path in ("text", "models"):
        wire.handler = lambda seen, reply: reply.raw(words.encode())
    else:
        wire.handler = lambda seen, reply: reply.json({"said": words}, 401 if path == "status" else 200)
    exc = raised(
        myllm.Client(wire.url, dialect="openai", max_retries=0, **named, **client), stream=path == "stream"
    )
    assert "hunter2" not in told(exc)


def test_a_secret_that_is_cut_off_is_one_still():
    key = "abcdefghijklmnopqrstuvwxyz"
    for cut in range(6, 26):
        assert scrubbed(f"saw {key[:cut]}…", [key]) == "saw ……"


def test_names_of_fields_stay():
    assert scrubbed({"message": ["a message", 1]}, ["message"]) == {"message": ["a …", 1]}


def test_a_short_secret_does_not_garble_words():
    assert scrubbed("a bad token k here", ["k"]) == "a bad token … here"


def test_what_looks_like_a_secret_is_one():
    assert scrubbed("https://ann:hunter2@h:1/v1") == "https://…@h:1/v1"
    for plain in ("Basic training at http://h:1/a@b, sk-short", ""):
        assert scrubbed(plain) == plain


def test_secrets_are_found_wherever_they_are_given():
    http = HTTPOptions(auth=("ann", "ölwechsel"), proxy="http://bob:p%40ss@proxy:1")
    found = secrets_of({"X-Auth-Token": "tok", "X-Max-Tokens": "100"}, ["key", None, ""], http)
    assert {"tok", "key", "ölwechsel", "p@ss", "p%40ss"} <= set(found)
    assert not {"100", ""} & set(found)
