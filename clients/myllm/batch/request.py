"""One request of a batch, however it is written, and what became of it.

OpenAI's batch format: https://platform.openai.com/docs/api-reference/batch/request-input
"""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .. import params as parameters
from ..errors import InvalidParameterError
from ..options import RequestOptions
from ..types import Answer
from ..wire import Kind

URLS: dict[str, tuple[Kind, str]] = {
    "/v1/chat/completions": ("chat", "messages"),
    "/v1/completions": ("completion", "prompt"),
    "/v1/embeddings": ("embedding", "input"),
    "/v1/responses": ("response", "input"),
}
"""What a line of a batch file may ask for, and the field of its body that holds the subject."""
_KINDS: dict[str, Kind] = {"messages": "chat", "prompt": "completion", "input": "embedding"}
_LINE_FIELDS = ("custom_id", "method", "url", "body")
_CALL_OPTIONS = frozenset(RequestOptions.__annotations__)
_WIRE_FIELDS = frozenset(
    {"audio", "encoding_format", "function_call", "functions", "metadata", "modalities", "prediction",
     "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "verbosity",
     "web_search_options",
     "cache_salt", "embed_dtype", "guided_decoding_backend", "guided_whitespace_pattern", "include_reasoning",
     "kv_transfer_params", "mm_processor_kwargs", "normalize", "request_id", "return_token_ids",
     "return_tokens_as_token_ids", "structured_outputs", "thinking_token_budget", "vllm_xargs"}
)  # fmt: skip
"""Fields of a line's body that no parameter stands for, and that are sent as they are.

OpenAI's (https://platform.openai.com/docs/api-reference), then vLLM's (`vllm/entrypoints/openai`).
"""


Call = Callable[..., Awaitable[Answer]]


class AsyncCaller(Protocol):
    """What a batch needs of an `AsyncClient`."""

    @property
    def chat(self) -> Call:
        """Answer a conversation."""

    @property
    def complete(self) -> Call:
        """Continue a prompt."""

    @property
    def embed(self) -> Call:
        """Embed texts."""

    @property
    def respond(self) -> Call:
        """Make a response of the Responses API."""

    @property
    def models(self) -> Callable[..., Awaitable[Any]]:
        """Ask which models are served."""

    def close(self) -> Awaitable[None]:
        """Close the connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchResult:
    """What became of one request: exactly one of `answer` and `error` is not None.

    Attributes:
        index: its place among the requests, from 0.
        custom_id: the id that its author gave it, if any.
    """

    index: int
    custom_id: str | None = None
    answer: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that has been read: the call's kind, its subject and its options."""

    kind: Kind
    subject: Any
    options: Mapping[str, Any]

    async def send(self, client: AsyncCaller) -> Answer:
        """Make the call."""
        calls: dict[Kind, Call] = {
            "chat": client.chat,
            "completion": client.complete,
            "embedding": client.embed,
            "response": client.respond,
        }
        return await calls[self.kind](self.subject, **self.options)


def read(request: Any, shared: Mapping[str, Any] | None = None) -> Request:
    """Read a request: a text or messages for a chat, call options, or a line of OpenAI's batch format.

    `shared` are options of all requests of a batch; a request's own win.

    Raises:
        InvalidParameterError: it is none of these, or holds a field that no call has.
    """
    if isinstance(request, str):
        return Request(kind="chat", subject=request, options=dict(shared or {}))
    if isinstance(request, Mapping):
        if "url" in request or "body" in request:
            return _read_line(request, shared or {})
        return _read_options(request, shared or {})
    if isinstance(request, Sequence) and not isinstance(request, bytes):
        return Request(kind="chat", subject=request, options=dict(shared or {}))
    raise InvalidParameterError(
        f"`requests`: {_short(request)} is no request: give a text, a list of messages, options such as "
        "{'prompt': …, 'max_tokens': 5}, or a line of OpenAI's batch format.",
        param="requests",
    )


def custom_id(request: Any) -> str | None:
    """Return the id in a request, whatever else is wrong with it."""
    found = request.get("custom_id") if isinstance(request, Mapping) else None
    return found if isinstance(found, str) else None


def check_shared(shared: Mapping[str, Any]) -> None:
    """Refuse options that no call has.

    Raises:
        UnknownParameterError, InvalidParameterError: an option is not understood.
    """
    parameters.build({name: value for name, value in shared.items() if name not in _CALL_OPTIONS})


def _read_options(request: Mapping[str, Any], shared: Mapping[str, Any]) -> Request:
    subjects = [name for name in _KINDS if name in request]
    if len(subjects) != 1:
        raise InvalidParameterError(
            f"`requests`: {_short(request)} must have exactly one of `messages`, `prompt` and `input`.",
            param="requests",
        )
    (subject,) = subjects
    own = {name: value for name, value in request.items() if name not in (subject, "custom_id")}
    kind = _KINDS[subject]
    return Request(kind=kind, subject=request[subject], options=_merged(kind, shared, own))


def _read_line(line: Mapping[str, Any], shared: Mapping[str, Any]) -> Request:
    for name in line:
        if name not in _LINE_FIELDS:
            near = difflib.get_close_matches(name, _LINE_FIELDS, n=1)
            guess = f" Did you mean `{near[0]}`?" if near else ""
            raise InvalidParameterError(
                f"A line of a batch has no field `{name}`.{guess} It has {_words(_LINE_FIELDS)}.", param=name
            )
    if line.get("method", "POST") != "POST":
        raise InvalidParameterError(f"`method={line['method']!r}` must be 'POST'.", param="method")
    url = line.get("url")
    if not isinstance(url, str) or url not in URLS:
        raise InvalidParameterError(f"`url={url!r}` must be one of {_words(URLS)}.", param="url")
    kind, subject = URLS[url]
    body = line.get("body")
    if not isinstance(body, Mapping) or subject not in body:
        raise InvalidParameterError(
            f"`body` must be an object with `{subject}`, as {url} wants it, and is {_short(body)}.",
            param="body",
        )
    own = {name: value for name, value in body.items() if name != subject}
    for name, usual in (("stream", False), ("encoding_format", "float")):
        if own.get(name) == usual:
            del own[name]  # what happens anyway
    if own.get("stream") is not None:
        raise InvalidParameterError(
            f"`stream={own['stream']!r}`: the answers of a batch are not streamed. Leave it out.",
            param="stream",
        )
    # In OpenAI's API a null is a field that is not there.
    own = {name: value for name, value in own.items() if value is not None}
    if kind == "response":
        if own.get("background"):
            raise InvalidParameterError(
                "`background`: a batch awaits its answers. Leave it out.", param="background"
            )
        return Request(kind=kind, subject=body[subject], options={**shared, **own})
    if wire := {name: own.pop(name) for name in _WIRE_FIELDS.intersection(own)}:
        own["extra_body"] = {**(own.get("extra_body") or shared.get("extra_body") or {}), **wire}
    return Request(kind=kind, subject=_one_prompt(kind, body[subject]), options=_merged(kind, shared, own))


def _one_prompt(kind: Kind, subject: Any) -> Any:
    """Return the prompt in a list of one, as OpenAI's API allows it; anything else as it is."""
    if kind != "completion" or not isinstance(subject, list):
        return subject
    if not subject or not isinstance(subject[0], str | list):
        return subject  # token ids
    if len(subject) > 1:
        raise InvalidParameterError(
            f"`prompt` is a list of {len(subject)} prompts: give each a line of its own.", param="prompt"
        )
    return subject[0]


def _merged(kind: Kind, shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Put a request's own options over the shared ones, whichever of a parameter's names each has."""
    if kind == "embedding":
        return {**shared, **own}  # it has no parameters
    merged: dict[str, Any] = {}
    for layer in (shared, own):
        options = {name: value for name, value in layer.items() if name in _CALL_OPTIONS}
        named = {name: value for name, value in layer.items() if name not in _CALL_OPTIONS}
        merged |= options | parameters.canonical(named)
    return merged


def _words(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
