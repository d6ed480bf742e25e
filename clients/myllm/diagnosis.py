"""From a server's refusal to the error that helps: the class, the server's words, and what to do."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from .dialects import Dialect
from .errors import APIStatusError, ContextLengthError, error_class_for_status
from .wire import Reply, Send

# vLLM and OpenAI: "This model's maximum context length is 8192 tokens. However, …"; TGI: "`inputs` tokens +
# `max_new_tokens` must be <= 2048. Given: …" and "`inputs` must have less than 1024 tokens."; llama.cpp.
_CONTEXT = re.compile(
    r"maximum context length|`inputs` tokens \+ `max_new_tokens`|`inputs` must have less than"
    r"|exceeds the available context size",
    re.IGNORECASE,
)

_HTML = re.compile(r"<html.*?<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)

# (status or None, pattern in the server's words, what to do)
_HINTS: tuple[tuple[int | None, re.Pattern[str], str], ...] = (
    (
        None,
        re.compile(r"enable-auto-tool-choice|tool.call.parser", re.IGNORECASE),
        "Start the server with `--enable-auto-tool-choice --tool-call-parser …`.",
    ),
    (
        None,
        re.compile(
            r"roles must alternate|system role not supported|only user and assistant roles", re.IGNORECASE
        ),
        "This model's chat template is strict about roles: join neighbouring messages of one role, and put "
        "the system text into the first user message.",
    ),
    (
        None,
        re.compile(r"chat[ _]template", re.IGNORECASE),
        "The model has no usable chat template: start the server with `--chat-template`, or use completions "
        '(`model_type="text"`, `client.complete`).',
    ),
    (404, re.compile(r"model", re.IGNORECASE), "`client.models()` lists the models that are served."),
    (
        404,
        re.compile(""),
        "Is this the right kind of server? `/v1/…` needs an OpenAI-compatible one (vLLM: `vllm serve`), "
        "`/generate` needs TGI; check `url`, `port` and `dialect`.",
    ),
    (401, re.compile(""), "Give the server's key as `api_key=`, or in `MYLLM_API_KEY`."),
    (403, re.compile(""), "Is this key allowed to use this model?"),
    (429, re.compile(""), "Lower the number of requests in flight, or raise `max_retries`."),
)


def error_from_reply(send: Send, reply: Reply, dialect: Dialect, request_id: str) -> APIStatusError:
    """Return the error for a reply of status 300 or above."""
    body = _body(reply.body, send.endpoint.api_key)
    words = dialect.server_words(body).message
    if words and (page := _HTML.search(words)):
        words = page[1].strip()
    cls: type[APIStatusError] = error_class_for_status(reply.status)
    hint = hint_for(reply.status, words or "")
    if reply.status < 400:
        hint = f"It redirects to {reply.headers.get('location')!r}: use that as the URL if you trust it."
    if reply.status in (400, 413, 422) and words and _CONTEXT.search(words):
        cls = ContextLengthError
        hint = None if "shorten" in words.lower() else "Shorten the prompt, or lower `max_tokens`."
    url = send.endpoint.url + send.request.path
    return cls(
        f"{send.request.method} {url} was answered with status {reply.status}.",
        body=body,
        endpoint=send.endpoint.url,
        status=reply.status,
        request_id=reply.headers.get("x-request-id") or request_id,
        server_message=words,
        hint=hint,
        retry_after=retry_after_seconds(reply.headers),
    )


def hint_for(status: int, words: str) -> str | None:
    """Return what to do about a refusal, where its cause is known."""
    for wanted, pattern, hint in _HINTS:
        if wanted in (None, status) and status < 500 and pattern.search(words):
            return hint
    return None


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Read `retry-after-ms`, or `Retry-After` as seconds or as an HTTP date (RFC 9110, section 10.2.3)."""
    try:
        milliseconds = headers.get("retry-after-ms", "")
        if re.fullmatch(r"\d+(\.\d+)?", milliseconds):
            return float(milliseconds) / 1000
        if (value := headers.get("retry-after")) is None:
            return None
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        date = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return max(0.0, date.timestamp() - (time.time() if now is None else now))


def _body(body: bytes, secret: str | None) -> Any:
    text = body.decode("utf-8", "replace")
    if secret:  # some servers repeat what they were sent
        text = text.replace(secret, "…")
    try:
        return json.loads(text)
    except ValueError:
        return text
