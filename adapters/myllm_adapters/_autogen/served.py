"""The HTTP client under AutoGen's `openai` client, whose requests a `myllm.Client` answers.

AutoGen makes an `openai.OpenAI` for each entry of a configuration, anew whenever a tool is registered, and
takes its `http_client` from the entry. So an HTTP client is the one place where an answer can come from
without anything being registered with each agent.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import httpx

from myllm import ChatChunk, ChatCompletion, Client, CompletionChunk, MyLLMError, Stream, Timeout
from myllm.errors import APIStatusError
from myllm.params import KNOWN_NAMES, SHAPES

from .errors import openai_error

NO_KEY = "EMPTY"
"""`openai` insists on a key; the client has its own."""

_SUBJECT = frozenset({"messages", "prompt", "model", "stream", "stream_options"})
HOW_TO_USE_TOOLS = frozenset({"tool_choice", "parallel_tool_calls"})
"""Parameters that mean nothing in a request without tools, and are refused there."""
_OTHER_SHAPES = SHAPES - {"response_format"}
_CHAT, _COMPLETION = "/chat/completions", "/completions"
# Headers that `openai` sends with every request; what else there is, its user asked for.
_OWN_HEADERS = frozenset(
    {b"accept", b"accept-encoding", b"connection", b"content-length", b"content-type", b"host", b"user-agent"}
)
_OWN_PREFIX = b"x-stainless-"
_OWN_KEY = f"Bearer {NO_KEY}".encode()


class ServedClient(httpx.Client):
    """An `httpx.Client` that answers OpenAI's chat and completion requests with a `myllm.Client`.

    A field of a request that is a parameter of ours is checked, and worded as the client's server wants it.
    AutoGen deep-copies configurations: a copy is the client itself, a pickle is what it was made of.

    Of a configuration for several agents, a request leaves out what does not belong to it: how to use tools,
    when it has none, and another shape of the answer, when it has a `response_format`.

    Args:
        client: answers.
        as_is: names of fields that are sent as they are.
    """

    def __init__(self, client: Client, as_is: Collection[str] = ()) -> None:
        # `send` answers, so there is no transport; `timeout=None` lets the client's own limits hold.
        super().__init__(transport=httpx.BaseTransport(), timeout=None, trust_env=False)
        self.client = client
        self._as_is = frozenset(as_is)

    def build_request(
        self,
        method: str,
        url: Any,
        *,
        content: Any = None,
        headers: Any = None,
        timeout: Any = None,
        **rest: Any,
    ) -> httpx.Request:
        """Build a request that is answered here: without a connection's headers, and `timeout` as given."""
        if content is None:
            return super().build_request(method, url, headers=headers, **rest)
        stream = httpx.ByteStream(content)
        return httpx.Request(method, url, headers=headers, stream=stream, extensions={"timeout": timeout})

    def send(self, request: httpx.Request, *, stream: bool = False, **kwargs: Any) -> httpx.Response:
        """Answer a request.

        Raises:
            openai.APIError: see `errors.openai_error`.
        """
        try:
            return self._answer(request, stream)
        except MyLLMError as exc:
            raise openai_error(exc, request) from exc

    def _answer(self, request: httpx.Request, stream: bool) -> httpx.Response:
        path = request.url.path
        if not path.endswith(_COMPLETION):
            raise APIStatusError(
                f"{request.method} {path}: an entry served by a client answers chats and completions only.",
                status=404,
                hint="Give AutoGen a plain entry for anything else: `config_list(client, plain=True)`.",
            )
        body = json.loads(request.read())
        options = _options(body, self.client, self._as_is)
        options.update(extra_headers=_headers(request), timeout=_limits(self.client.timeout, request))
        chat = path.endswith(_CHAT)
        if not stream:
            ask = self.client.chat if chat else self.client.complete
            answer = ask(body["messages" if chat else "prompt"], **options)
            return httpx.Response(
                200,
                headers={"content-type": "application/json", "x-request-id": answer.request_id or ""},
                content=answer.model_dump_json(exclude_none=True),
                request=request,
            )
        opening = self.client.stream_chat if chat else self.client.stream_complete
        opened = opening(body["messages" if chat else "prompt"], **options)
        return httpx.Response(
            200,
            headers={"content-type": "text/event-stream", "x-request-id": opened.request_id},
            stream=_Events(opened, request),
            request=request,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.client!r})"

    def __copy__(self) -> ServedClient:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ServedClient:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.client, self._as_is)


class _Events(httpx.SyncByteStream):
    """A stream's chunks as server-sent events, the token counts in the last one, where AutoGen reads them."""

    def __init__(self, stream: Stream[Any, Any], request: httpx.Request) -> None:
        self._stream = stream
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        last: ChatChunk | CompletionChunk | None = None
        try:
            for last in self._stream:
                if last.choices:
                    yield _event(last.model_dump_json(exclude_none=True, exclude={"usage"}))
            if last is not None:
                whole: ChatCompletion = self._stream.final()
                counts = last.model_copy(update={"choices": [], "usage": whole.usage})
                yield _event(counts.model_dump_json(exclude_none=True))
        except MyLLMError as exc:
            raise openai_error(exc, self._request) from exc
        yield _event("[DONE]")

    def close(self) -> None:
        self._stream.close()


def _options(body: Mapping[str, Any], client: Client, as_is: Collection[str]) -> dict[str, Any]:
    """Return a request's fields as options of a call, but for its subject and what the client says anyway."""
    aside = _SUBJECT
    if not body.get("tools"):
        aside |= HOW_TO_USE_TOOLS
    if body.get("response_format") is not None:
        aside |= _OTHER_SHAPES
    options: dict[str, Any] = {"model": body.get("model")}
    extra: dict[str, Any] = {}
    for name, value in body.items():
        if name in aside:
            continue
        if name not in KNOWN_NAMES or name in as_is:
            extra[name] = value
        elif client.defaults.get(name) != value:
            options[name] = value
    return {**options, "extra_body": extra}


def _limits(own: Timeout, request: httpx.Request) -> Timeout:
    """Return the client's limits, lowered to the `timeout` of AutoGen's configuration if that has one."""
    given = request.extensions["timeout"]
    if not isinstance(given, int | float):  # `openai` hands over this client's own, which is none
        return own
    waits = {name: _least(getattr(own, name), given) for name in ("connect", "first_byte", "idle")}
    return Timeout(**waits, total=own.total)


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def _headers(request: httpx.Request) -> dict[str, str]:
    """Return the headers that a user gave: an entry's `extra_headers` and `default_headers`."""
    return {
        name.decode("ascii"): value.decode("latin-1")
        for name, value in request.headers.raw
        if not (lower := name.lower()).startswith(_OWN_PREFIX)
        and lower not in _OWN_HEADERS
        and value != _OWN_KEY
    }


def _least(own: float | None, given: float) -> float:
    return given if own is None else min(own, given)
