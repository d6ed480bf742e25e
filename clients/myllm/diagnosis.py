"""From a server's refusal to the error that helps: the class, the server's words, and what to do."""

from __future__ import annotations

import difflib
import email.utils
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .dialects import Dialect
from .errors import APIStatusError, ContextLengthError, error_class_for_status
from .messages import policy_for
from .redaction import redacted, secrets_of
from .wire import Reply, Send

# --- a prompt that is too long -----------------------------------------------------------------------------

_TOO_LONG = re.compile(
    r"maximum context length|model's context length|exceeds? (?:the )?(?:maximum )?context length"
    r"|available context size|exceed_context_size|context_length_exceeded|exceeds? (?:the )?context window"
    r"|`inputs` tokens \+ `max_new_tokens`|`inputs` must have less than|`max_new_tokens` must be <="
    r"|exceed the configured limit of \d+ tokens|cannot be greater than max_model_len"
    r"|longer than the (?:model's )?context length|is too large to process"
    r"|supports at most [\d,]+ completion tokens(?!,)",  # SGLang's; OpenAI's goes on, and is about the answer
    re.IGNORECASE,
)
# vLLM's words for a prompt that leaves no room, when nothing said how many tokens are wanted.
_NO_ROOM = re.compile(r"max_tokens must be at least 1, got (?:0|-\d+)\b")


def _numbers(*patterns: str) -> re.Pattern[str]:
    """Compile the alternatives, in which numbers may have commas."""
    return re.compile("|".join(patterns).replace(r"(\d+)", r"(\d[\d,]*)"))


# Each server says the three numbers in its own words, and most have had several; the tests quote them.
_LIMIT = _numbers(
    r"context length (?:is (?:only )?|of |\()(\d+)|context size \((\d+) tokens|context window of (\d+)"
    r"|configured limit of (\d+)|must be <= (\d+)|must have less than (\d+) tokens|max_model_len ?= ?(\d+)"
    r"|supports at most (\d+) completion|current batch size: (\d+)"
)
_PROMPT = _numbers(
    r"(\d+) in (?:the|your) (?:messages|prompt)|(?:has|passed|contains(?: at least)?) (\d+) input tokens"
    r"|input \((\d+) tokens|Input length \((\d+)\)|(\d+) tokens from the input messages"
    r"|request \((\d+) tokens|Given: (\d+) `inputs` tokens|tokens\. Given: (\d+)|Requested tokens \((\d+)\)"
    r"|messages resulted in (\d+) tokens"
)
_MAX_TOKENS = _numbers(
    r"(\d+) (?:in|for) the completion|(\d+) in your completion|(\d+) tokens for the completion"
    r"|is too large: (\d+)|requested (\d+) output tokens|and (\d+) `max_new_tokens`"
    r"|`max_new_tokens` must be <= \d+\. Given: (\d+)$|max_(?:completion_)?tokens=(\d+) cannot"
)

# --- hints -------------------------------------------------------------------------------------------------

# (statuses or None for any below 500, pattern in the server's words, what to do); the first that fits.
_HINTS: tuple[tuple[tuple[int, ...] | None, re.Pattern[str], str], ...] = tuple(
    (statuses, re.compile(pattern, re.IGNORECASE), hint)
    for statuses, pattern, hint in (
        (
            None,
            r"enable-auto-tool-choice|tool.call.parser",
            "Start the server with `--enable-auto-tool-choice --tool-call-parser …`.",
        ),
        (
            None,
            r"chat[ _]template|template not found",
            "The model has no usable chat template: start the server with `--chat-template`, or use "
            'completions (`model_type="text"`, `client.complete`).',
        ),
        (
            None,
            r"grammar is not supported",
            "The server was started with `--disable-grammar-support`: constraints need it without.",
        ),
        (
            None,
            r"model does not support .{1,40} API",
            "The served model is for another task: `client.server_info()` says for which.",
        ),
        (
            (400,),
            r"pooling type 'none'",
            "Start the server with `--pooling mean`, or what the model's makers say.",
        ),
        ((500,), r"created with embedding=True", "Start the server with `--embedding true`."),
        ((404,), r"model", "`client.models()` lists the models that are served."),
        (
            (404, 405),
            r"",
            "Is this the right kind of server? `/v1/…` needs an OpenAI-compatible one (vLLM: `vllm serve`), "
            "`/generate` needs TGI; check `url`, `port` and `dialect`.",
        ),
        ((401,), r"", "Give the server's key as `api_key=`, or in `MYLLM_API_KEY`."),
        ((403,), r"", "Is this key allowed to use this model?"),
        ((413,), r"", "The request is larger than the server or a proxy in front of it takes."),
        ((429,), r"", "Lower the number of requests in flight, or raise `max_retries`."),
    )
)
_ROLES = {
    "alternate": 'message_policy="alternate"` joins neighbouring messages of one role and puts',
    "merge_system": 'message_policy="merge_system"` puts',
}

# What is missing, by a part of the path that is not there.
_NO_ROUTE = {
    "embed": "This server makes no embeddings: start it with a model that does (vLLM: `--runner pooling`, "
    "llama-server: `--embeddings --pooling mean`).",
    "tokenize": "This server has no route that tokenizes: count with the model's own tokenizer.",
}
_NO_MODELS = (
    "Does the URL lead to the root of an LLM server, as http://localhost:8000 does? A path in front of `/v1` "
    "belongs to it, one behind does not."
)
_HTML = re.compile(r"<html.*?<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)
# vLLM: "(parameter=n, value=0)" and "'loc': 'body.n'"; llama-cpp-python: "'loc': ('body', 'n')";
# llama.cpp: "Field 'n': …".
_NAMED_FIELD = re.compile(r"\(parameter=(\w+)|'loc': (?:'body\.|\('body', ')(\w+)|^Field '(\w+)'")


def error_from_reply(
    send: Send,
    reply: Reply,
    dialect: Dialect,
    request_id: str,
    served: Sequence[str] = (),
    secrets: Iterable[str] = (),
) -> APIStatusError:
    """Return the error for a reply of status 300 or above.

    Args:
        send: what was asked.
        reply: what came.
        dialect: whose words the server speaks.
        request_id: ours, for servers that do not answer with theirs.
        served: the models that the server serves, where they are known.
        secrets: what may not show in it, beside what the request's headers hold.
    """
    secrets = {*secrets, *secrets_of(send.headers, [send.endpoint.api_key])}
    # The words are understood as they are, and scrubbed at the end: a key may be one of them.
    return redacted(_diagnosed(send, reply, dialect, request_id, served), secrets)


def _diagnosed(
    send: Send, reply: Reply, dialect: Dialect, request_id: str, served: Sequence[str]
) -> APIStatusError:
    body = _body(reply.body)
    said = dialect.server_words(body)
    words = said.message
    if words and (page := _HTML.search(words)):
        words = page[1].strip()
    context: dict[str, Any] = {
        "body": body,
        "param": said.param or _named_field(words),
        "endpoint": send.endpoint.url,
        "status": reply.status,
        "request_id": reply.headers.get("x-request-id") or request_id,
        "server_message": words,
        "retry_after": retry_after_seconds(reply.headers),
    }
    url = send.endpoint.url + send.request.path
    message = f"{send.request.method} {url} was answered with status {reply.status}."
    too_long = _TOO_LONG.search(f"{words} {said.type} {said.code}") or (
        _NO_ROOM.search(words or "") and not _limits_tokens(send)
    )
    if reply.status in (400, 413, 422, 500) and too_long:
        return _too_long(message, words or "", body, context)
    if reply.status < 400:
        target = reply.headers.get("location")
        hint: str | None = (
            f"It redirects to {target!r}: use that as the URL if you trust it." if target else None
        )
    else:
        hint = hint_for(reply.status, words or "", _model_of(send), served)
        if reply.status in (404, 405, 501) and "model" not in (words or ""):
            hint = next((say for part, say in _NO_ROUTE.items() if part in send.request.path), hint)
        if reply.status == 404 and send.request.method == "GET" and send.request.path.endswith("/models"):
            hint = _NO_MODELS
        if reply.status == 401 and send.endpoint.api_key is not None:
            hint = "The server does not take the key that was sent: `api_key=`, or `MYLLM_API_KEY`."
    cls: type[APIStatusError] = error_class_for_status(reply.status)
    return cls(message, hint=hint, **context)


def hint_for(status: int, words: str, model: str | None = None, served: Sequence[str] = ()) -> str | None:
    """Return what to do about a refusal, where its cause is known.

    Args:
        status: the reply's.
        words: the server's.
        model: the model that was asked for.
        served: the models that are served, where they are known.
    """
    if (policy := policy_for(words)) is not None:
        return (
            f"This model's chat template is strict about roles: `{_ROLES[policy]} the system text into the "
            "first user message."
        )
    if status == 404 and served and (not words or "model" in words.lower()):
        near = difflib.get_close_matches(model or "", served, n=1)
        # Some servers list them by themselves.
        told = all(re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", words) for name in served)
        listed = "" if told else f"The server serves {', '.join(map(repr, served))}."
        guess = f"Did you mean {near[0]!r}?" if near else ""
        return f"{listed} {guess}".strip() or None
    for statuses, pattern, hint in _HINTS:
        if (status in statuses if statuses else status < 500) and pattern.search(words):
            return hint
    return None


def _too_long(message: str, words: str, body: Any, context: dict[str, Any]) -> ContextLengthError:
    hint = None if "shorten" in words.lower() else "Shorten the prompt, or lower `max_tokens`."
    error = ContextLengthError(message, hint=hint, **context)
    error.prompt_tokens, error.max_tokens, error.limit = (
        _number(pattern, words) for pattern in (_PROMPT, _MAX_TOKENS, _LIMIT)
    )
    # llama.cpp has fields for them.
    fields = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(fields, dict):
        error.prompt_tokens = _int(fields.get("n_prompt_tokens")) or error.prompt_tokens
        error.limit = _int(fields.get("n_ctx")) or error.limit
    return error


def _number(pattern: re.Pattern[str], words: str) -> int | None:
    found = pattern.search(words)
    return None if found is None else next(int(group.replace(",", "")) for group in found.groups() if group)


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _named_field(words: str | None) -> str | None:
    """Return the field that the server's words name."""
    found = _NAMED_FIELD.search(words or "")
    return None if found is None else found[found.lastindex or 0]


def _model_of(send: Send) -> str | None:
    body = send.request.json
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


def _limits_tokens(send: Send) -> bool:
    """Whether the request says how many tokens it wants."""
    body = send.request.json
    return isinstance(body, dict) and not {"max_tokens", "max_completion_tokens"}.isdisjoint(body)


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


def _body(body: bytes) -> Any:
    text = body.decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
