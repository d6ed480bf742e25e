"""Ollama, by its own API.

Its OpenAI routes are translated into this API inside the server, and lose on the way what OpenAI has no word
for: `top_k`, `min_p`, `num_ctx`, prompts without a template. So everything goes the native way, which all its
versions have; the stream is newline-delimited JSON.

Wire format: https://github.com/ollama/ollama/blob/main/docs/api.md and `api/types.go`. What is the
server's own goes through `extra_body={"options": {"num_ctx": 8192}, "keep_alive": "1h"}`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ..constraints import schema_in
from ..errors import InvalidParameterError, InvalidResponseError, ServerError, UnsupportedFeatureError, short
from ..messages import named
from ..types import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Delta,
    Embeddings,
    FunctionCall,
    Logprobs,
    Message,
    ToolCall,
    Usage,
)
from ..wire import Call, Reply, ServerInfo, WireRequest
from ._base import ChunkReader, _Done, is_neutral, load_json, refuse
from ._shared import joined, seeds
from .embeddings import ollama_answer, ollama_request
from .openai import OpenAIDialect

_OPTIONS = {
    name: name
    for name in (
        "temperature", "top_p", "min_p", "typical_p", "frequency_penalty", "presence_penalty",
        "repeat_last_n", "stop",
    )
} | {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}  # fmt: skip
_HANDLED = frozenset(
    {"n", "seed", "top_k", "logprobs", "top_logprobs", "json_schema", "response_format", "user"}
)
_CHAT_HANDLED = _HANDLED | {"tools", "tool_choice", "reasoning_effort"}
_COMPLETION_HANDLED = _HANDLED | {"suffix"}

# (what a call wants, the first version that reads it; older ones answer as if it had not been asked)
_SINCE = {"logprobs": (0, 12, 11), "reasoning_effort": (0, 9, 0), "json_schema": (0, 5, 0)}


class OllamaDialect(OpenAIDialect):
    """`/api/chat`, `/api/generate` and `/api/embed`.

    A completion's prompt goes to the model as it is (`raw`), unless a `suffix` asks for the model's
    fill-in-the-middle template. `n` becomes that many requests.
    """

    name = "ollama"

    def depends_on_server(self, call: Call) -> bool:
        """See `Dialect.depends_on_server`: old versions ignore what newer ones read."""
        return bool(_wants(call))

    def embedding_request(self, call: Call) -> WireRequest:
        """See `OpenAIDialect.embedding_request`."""
        return ollama_request(call)

    def embeddings(self, call: Call, raw: Any) -> Embeddings:
        """See `OpenAIDialect.embeddings`."""
        return ollama_answer(call, raw)

    def generation_requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """See `OpenAIDialect.generation_requests`."""
        for name in _wants(call):
            # A server built from source calls itself 0.0.0.
            if server.version and any(server.version) and server.version < _SINCE[name]:
                first = ".".join(map(str, _SINCE[name]))
                raise UnsupportedFeatureError(
                    f"`{name}`: {server.product} ignores it, so nothing was sent.",
                    hint=f"Ollama {first} and later read it.",
                )
        body = _chat_body(call) if call.kind == "chat" else _completion_body(call)
        extra = dict(call.extra_body)
        options = _options(call) | dict(extra.pop("options", None) or {})
        path = "/api/chat" if call.kind == "chat" else "/api/generate"
        return [
            WireRequest(method="POST", path=path, json={**body, "options": {**options, **seed}, **extra})
            for seed in seeds(call, self.name)
        ]

    def generated(self, call: Call, replies: Sequence[Reply]) -> ChatCompletion | Completion:
        """See `OpenAIDialect.generated`."""
        raws = [load_json(reply.body) for reply in replies]
        if call.kind == "chat":
            return joined([_chat_answer(call, raw) for raw in raws])
        return joined([_completion_answer(call, raw) for raw in raws])

    def reader(self, call: Call) -> ChunkReader:
        """See `Dialect.reader`."""
        return _Reader(call)


class _Reader:
    """Reads the lines of a stream; the one that is `done` is the last."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._called = 0
        self.complete = self.ended = False

    def read(self, data: bytes) -> ChatChunk | CompletionChunk | _Done | None:
        """See `ChunkReader.read`."""
        raw = load_json(data)
        if isinstance(raw, dict) and raw.get("error") is not None:
            words = raw["error"] if isinstance(raw["error"], str) else short(raw["error"])
            raise ServerError(
                "The server broke the stream off with an error.", server_message=words, body=raw
            )
        _check(raw, "message" if self._call.kind == "chat" else "response")
        self.complete = self.ended = bool(raw.get("done"))
        head = {"created": _created(raw), "model": raw.get("model"), "usage": _usage(raw)}
        if self._call.kind == "completion":
            text = CompletionChoice(text=raw["response"], finish_reason=_reason(raw))
            text.logprobs = _logprobs(self._call, raw)
            return CompletionChunk(choices=[text], **head)
        said = raw["message"]
        calls = _tool_calls(said, self._called)
        self._called += len(calls or ())
        delta = Delta(
            role=said.get("role"),
            content=said.get("content"),
            reasoning=said.get("thinking"),
            tool_calls=calls,
        )
        choice = ChatChunkChoice(delta=delta, finish_reason=_reason(raw, bool(self._called)))
        choice.logprobs = _logprobs(self._call, raw)
        return ChatChunk(choices=[choice], **head)


def _wants(call: Call) -> list[str]:
    """Return what the call wants that not every version of Ollama has."""
    params = call.params
    schema = params.json_schema is not None or schema_in(params.response_format or {}) is not None
    wants = {
        "logprobs": params.wanted_logprobs is not None,
        "reasoning_effort": params.reasoning_effort is not None,
        "json_schema": schema,
    }
    return [name for name, wanted in wants.items() if wanted]


def _options(call: Call) -> dict[str, Any]:
    chat, params = call.kind == "chat", call.params
    where = "the chat endpoint" if chat else "the generate endpoint"
    if params.max_tokens == 0:
        raise refuse("max_tokens", 0, "ollama", where, "There, 0 means without a limit.")
    handled = _CHAT_HANDLED if chat else _COMPLETION_HANDLED
    options: dict[str, Any] = {}
    for name, value in params.set_values().items():
        if name in _OPTIONS:
            # Also a neutral value: the model's own default (its Modelfile) may be another.
            options[_OPTIONS[name]] = value
        elif name not in handled and not is_neutral(name, value):
            raise refuse(name, value, "ollama", where)
    if params.top_k is not None:
        options["top_k"] = max(params.top_k, 0)  # off is 0 here
    return options


def _common(call: Call) -> dict[str, Any]:
    body: dict[str, Any] = {} if call.model is None else {"model": call.model}
    body["stream"] = call.stream
    if (wanted := call.params.wanted_logprobs) is not None:
        body |= {"logprobs": True, "top_logprobs": wanted}
    if (form := _format(call)) is not None:
        body["format"] = form
    if call.params.user is not None:
        body["user"] = call.params.user
    return body


def _chat_body(call: Call) -> dict[str, Any]:
    params = call.params
    if params.tool_choice not in (None, "auto", "none"):
        raise refuse(
            "tool_choice", params.tool_choice, "ollama", "the chat endpoint",
            "It leaves the choice to the model: give only the tools that it may call.",
        )  # fmt: skip
    body = _common(call) | {"messages": native_messages(call.messages or [])}
    if params.tools and params.tool_choice != "none":
        body["tools"] = params.tools
    if (effort := params.reasoning_effort) is not None:
        body["think"] = False if effort == "none" else effort
    return body


def _completion_body(call: Call) -> dict[str, Any]:
    if not isinstance(call.prompt, str):
        raise refuse("prompt", call.prompt, "ollama", "the generate endpoint", "Ollama takes text only.")
    # Without `think`, Ollama would take a thinking model's tags out of the text.
    body = _common(call) | {"prompt": call.prompt, "think": False}
    return body | ({"suffix": call.params.suffix} if call.params.suffix else {"raw": True})


def _format(call: Call) -> Any:
    """Return what Ollama calls `format`: a JSON Schema, "json", or None."""
    if call.params.json_schema is not None:
        return call.params.json_schema
    wanted = call.params.response_format
    if wanted is None or is_neutral("response_format", wanted):
        return None
    schema = schema_in(wanted)
    if schema is None and wanted.get("type") == "json_object":
        return "json"
    if schema is None:
        raise refuse("response_format", wanted, "ollama", "the server", "Ollama wants a schema.")
    return schema


# --- messages ----------------------------------------------------------------------------------------------


def native_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Translate OpenAI's messages into Ollama's.

    Raises:
        UnsupportedFeatureError: a part of a content that Ollama has no place for.
        InvalidParameterError: a message of another shape, or a tool call whose arguments are no JSON object.
    """
    names: dict[str, str] = {}
    native = []
    for position, message in enumerate(messages):
        try:
            native.append(_native_message(message, names))
        except (KeyError, TypeError, AttributeError) as exc:
            raise InvalidParameterError(
                f"`messages[{position}]={short(message)}` is not of OpenAI's shape "
                f"({type(exc).__name__}: {exc}).",
                param="messages",
            ) from exc
    return native


def _native_message(message: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    # Of several users, the name says which one speaks; Ollama has no place for it but the text.
    out = named(message) if message.get("role") == "user" else dict(message)
    out["content"], images = _native_content(out.get("content"))
    if images:
        out["images"] = images
    reasoning = [out.pop(name, None) for name in ("reasoning", "reasoning_content")]
    if thinking := reasoning[0] or reasoning[1]:
        out["thinking"] = thinking
    if calls := out.pop("tool_calls", None):
        out["tool_calls"] = [_native_call(call) for call in calls]
        names.update({call["id"]: call["function"]["name"] for call in calls if call.get("id")})
    if message.get("role") == "tool":
        name = out.pop("name", None) or names.get(message.get("tool_call_id") or "")
        if name:
            out["tool_name"] = name
    return out


def _native_content(content: Any) -> tuple[str, list[str]]:
    """Return a content's text and its images (and sounds), which Ollama takes beside it, in base64."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts, media = [], []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            texts.append(part["text"])
        elif kind == "image_url":
            url = part["image_url"]["url"] if isinstance(part["image_url"], dict) else part["image_url"]
            head, _, data = url.partition(";base64,")
            if not head.startswith("data:") or not data:
                raise UnsupportedFeatureError(
                    f"Ollama takes no images by URL, so nothing was sent: {url[:80]!r}.",
                    hint="Give the image's bytes: `data:image/png;base64,…`.",
                )
            media.append(data)
        elif kind == "input_audio":
            media.append(part["input_audio"]["data"])
        else:
            raise UnsupportedFeatureError(
                f"Ollama has no place for a content part of type {kind!r}, so nothing was sent."
            )
    return "\n".join(texts), media


def _native_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments") or "{}"
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidParameterError(
            f"`messages`: the arguments of the call of {function['name']!r} are no JSON object: "
            f"{short(arguments)}.",
            param="messages",
        )
    native: dict[str, Any] = {"function": {"name": function["name"], "arguments": parsed}}
    return {"id": call["id"], **native} if call.get("id") else native


# --- answers -----------------------------------------------------------------------------------------------


def _chat_answer(call: Call, raw: Any) -> ChatCompletion:
    _check(raw, "message")
    said = raw["message"]
    calls = _tool_calls(said, 0)
    message = Message(
        role=said.get("role", "assistant"),
        content=said.get("content"),
        reasoning=said.get("thinking"),
        tool_calls=calls,
    )
    choice = ChatChoice(
        message=message, finish_reason=_reason(raw, bool(calls)), logprobs=_logprobs(call, raw)
    )
    answer = ChatCompletion(
        created=_created(raw), model=raw.get("model"), choices=[choice], usage=_usage(raw)
    )
    answer._raw = raw
    return answer


def _completion_answer(call: Call, raw: Any) -> Completion:
    _check(raw, "response")
    choice = CompletionChoice(text=raw["response"], finish_reason=_reason(raw), logprobs=_logprobs(call, raw))
    answer = Completion(created=_created(raw), model=raw.get("model"), choices=[choice], usage=_usage(raw))
    answer._raw = raw
    return answer


def _check(raw: Any, field: str) -> None:
    if not isinstance(raw, dict) or field not in raw:
        raise InvalidResponseError(
            f"The answer has no `{field}`: {short(raw)}.", hint="Is this an Ollama server?"
        )


def _tool_calls(said: Mapping[str, Any], first: int) -> list[ToolCall] | None:
    """Return the calls in a message; each comes whole. Those without an id get one, as OpenAI's have."""
    return [
        ToolCall(
            id=call.get("id") or f"call_{uuid.uuid4().hex[:8]}",
            index=first + i,
            function=FunctionCall(
                name=call["function"]["name"],
                arguments=json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False),
            ),
        )
        for i, call in enumerate(said.get("tool_calls") or ())
    ] or None


def _reason(raw: Mapping[str, Any], called: bool = False) -> str | None:
    """Return OpenAI's finish_reason; old versions give none, so that "stop" stands for it."""
    if not raw.get("done"):
        return None
    reason: str = raw.get("done_reason") or "stop"
    return "tool_calls" if called and reason == "stop" else reason


def _logprobs(call: Call, raw: Mapping[str, Any]) -> Logprobs | None:
    if call.params.wanted_logprobs is None or raw.get("logprobs") is None:
        return None
    return Logprobs.model_validate({"content": raw["logprobs"]})


def _usage(raw: Mapping[str, Any]) -> Usage | None:
    if "eval_count" not in raw:
        return None
    # A prompt that was cached whole is not counted by old versions.
    prompt, answer = raw.get("prompt_eval_count", 0), raw["eval_count"]
    return Usage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


def _created(raw: Mapping[str, Any]) -> int:
    return int(datetime.fromisoformat(raw["created_at"]).timestamp()) if raw.get("created_at") else 0
