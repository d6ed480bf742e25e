from __future__ import annotations

import pytest

import myllm
from myllm.diagnosis import retry_after_seconds


@pytest.mark.parametrize(
    ("status", "body", "error", "hint"),
    [
        (400, {"error": {"message": "bad", "type": "x"}}, myllm.BadRequestError, None),
        (400, {"object": "error", "message": "flat, as vLLM 0.6 had it"}, myllm.BadRequestError, None),
        (401, {"error": "Unauthorized"}, myllm.AuthenticationError, "MYLLM_API_KEY"),
        (403, {"detail": "no"}, myllm.AuthenticationError, "allowed"),
        (404, {"error": {"message": "The model `x` does not exist."}}, myllm.NotFoundError, "client.models()"),
        (404, {"detail": "Not Found"}, myllm.NotFoundError, "right kind of server"),
        (422, {"error": "`temperature` must be strictly positive", "error_type": "validation"}, myllm.ValidationError, None),
        (429, {"error": "Model is overloaded", "error_type": "overloaded"}, myllm.RateLimitError, "in flight"),
        (500, "plain text", myllm.ServerError, None),
        (501, "<!DOCTYPE HTML>\n<html><head><title>Error response</title></head></html>", myllm.ServerError, None),
        (503, "", myllm.OverloadedError, None),
        (418, {"error": {"message": "teapot"}}, myllm.APIStatusError, None),
        (400, {"error": {"message": "This model's maximum context length is 2048 tokens. However, you requested 9000."}}, myllm.ContextLengthError, "Shorten"),
        (422, {"error": "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 9 and 4000", "error_type": "validation"}, myllm.ContextLengthError, "Shorten"),
        (400, {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}}, myllm.BadRequestError, "--tool-call-parser"),
        (400, {"error": {"message": "Conversation roles must alternate user/assistant"}}, myllm.BadRequestError, "join"),
        (400, {"error": {"message": "no chat template is defined"}}, myllm.BadRequestError, "--chat-template"),
    ],
)  # fmt: skip
def test_status_words_and_what_to_do(wire, status, body, error, hint):
    def handler(seen, reply):
        if isinstance(body, str):
            reply.raw(body.encode(), status, {"X-Request-Id": "theirs"})
        else:
            reply.json(body, status, {"X-Request-Id": "theirs"})

    wire.handler = handler
    with myllm.Client(wire.url, model="m", max_retries=0, api_key="sesame") as client:
        with pytest.raises(myllm.APIStatusError) as caught:
            client.chat("x")
    exc = caught.value
    assert type(exc) is error
    assert (exc.status, exc.endpoint, exc.request_id) == (status, wire.url, "theirs")
    assert hint is None or hint in exc.hint
    assert "sesame" not in f"{exc} {exc!r} {exc.__dict__}"
    if isinstance(body, dict):
        assert exc.server_message in str(body)
        assert exc.server_message in str(exc)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after_seconds(headers, now=60.0) == seconds
