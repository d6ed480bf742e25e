"""`Client` and `AsyncClient`: thin drivers. What they do is decided in `flow.py`; they only move bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from . import params as parameters
from .dialects import Dialect, get_dialect
from .endpoints import Endpoint, UrlSpec, resolve_endpoints
from .errors import InvalidParameterError
from .flow import Flow, Route, answer_flow, models_flow, stream_flow
from .headers import checked
from .stream import AsyncStream, AsyncStreamOpening, Stream, StreamParser
from .transport.http import AsyncHTTPTransport, HTTPTransport
from .transport.options import HTTPOptions
from .types import ChatChunk, ChatCompletion, Completion, CompletionChunk, ModelInfo
from .wire import Call, Kind, Reply, Send, Sleep, Timeout

T = TypeVar("T")
ClientT = TypeVar("ClientT", bound="BaseClient")
Messages = str | Sequence[Mapping[str, Any]]
TimeoutLike = Timeout | float | None


class _Unset:
    """The type of `UNSET`: `None` is a value of `timeout` (no limit)."""

    def __repr__(self) -> str:
        return "UNSET"


UNSET = _Unset()


class _Options(NamedTuple):
    """What a call may set beside its parameters."""

    model: str | None
    timeout: TimeoutLike | _Unset
    extra_body: Mapping[str, Any] | None
    extra_headers: Mapping[str, str] | None


class BaseClient:
    """What both clients share: where to go, with what, and the building of calls."""

    def __init__(
        self,
        base_url: UrlSpec | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        dialect: str | Dialect = "vllm",
        timeout: TimeoutLike | _Unset = UNSET,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
        http: HTTPOptions | None = None,
        endpoints: Sequence[Endpoint] | None = None,
        **defaults: Any,
    ) -> None:
        """Make a client.

        Args:
            base_url: where the server is, `/v1` or not, or a list of equal servers, used in turn. Default:
                `MYLLM_BASE_URL`, then `OPENAI_BASE_URL`, then http://localhost:8000.
            model: the model to ask for; None asks for the first one that the server serves.
            api_key: the server's key. Default: `MYLLM_API_KEY`.
            dialect: the kind of server: "vllm" (also `myllm serve`), "tgi" or "openai".
            timeout: a `Timeout`, or seconds for a whole call, or None for no limit but the connect timeout's.
            max_retries: further tries after connection errors and statuses 408, 409, 429 and 5xx; 0 inside
                a framework that retries by itself.
            headers: sent with every request.
            http: certificates, proxy and basic authentication.
            endpoints: instead of `base_url` and `api_key`, when servers want different keys.
            **defaults: parameters (`temperature=…`, …) of every call that does not set them.

        Raises:
            UnknownParameterError, InvalidParameterError: an argument is not understood.
        """
        if endpoints is not None and not endpoints:
            raise InvalidParameterError(
                "`endpoints` is an empty list: name at least one server.", param="endpoints"
            )
        if endpoints is not None and (base_url is not None or api_key is not None):
            raise InvalidParameterError(
                "`endpoints` already say where and with which key: leave `base_url` and `api_key` out.",
                param="endpoints",
            )
        parameters.build(defaults)
        self.model = model
        self.defaults: dict[str, Any] = dict(defaults)
        self.timeout = Timeout() if isinstance(timeout, _Unset) else Timeout.of(timeout)
        self._http = http or HTTPOptions()
        self._route = Route(
            endpoints=tuple(endpoints or resolve_endpoints(base_url, api_key)),
            dialect=get_dialect(dialect),
            max_retries=_checked_retries(max_retries),
            headers=checked(headers, "headers"),
        )
        if self._http.auth and any(endpoint.api_key for endpoint in self.endpoints):
            raise InvalidParameterError(
                "`api_key` and basic authentication (`auth`) want the same header: give one of them.",
                param="api_key",
            )

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """The servers, in the order they take turns."""
        return self._route.endpoints

    @property
    def dialect(self) -> str:
        """The kind of server: "vllm", "tgi" or "openai"."""
        return self._route.dialect.name

    @property
    def max_retries(self) -> int:
        """Further tries after a failure that another try may mend."""
        return self._route.max_retries

    def with_options(
        self: ClientT,
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        max_retries: int | None = None,
        **defaults: Any,
    ) -> ClientT:
        """Return a client with other settings over the same connections; closing either closes both.

        `defaults` go on top of this client's, and `None` removes one.
        """
        merged = {**parameters.canonical(self.defaults), **parameters.canonical(defaults)}
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.defaults = {name: value for name, value in merged.items() if value is not None}
        parameters.build(twin.defaults)
        twin.model = model or self.model
        twin.timeout = self.timeout if isinstance(timeout, _Unset) else Timeout.of(timeout)
        if max_retries is not None:
            twin._route = replace(self._route, max_retries=_checked_retries(max_retries))
        return twin

    def __repr__(self) -> str:
        urls = ", ".join(endpoint.url for endpoint in self.endpoints)
        return f"{type(self).__name__}({urls!r}, model={self.model!r}, dialect={self.dialect!r})"

    def _call(
        self, kind: Kind, subject: Any, given: dict[str, Any], options: _Options, *, stream: bool
    ) -> Call:
        return Call(
            kind=kind,
            model=options.model or self.model,
            params=parameters.build(given, self.defaults),
            prompt=_checked_prompt(subject) if kind == "completion" else None,
            messages=_checked_messages(subject) if kind == "chat" else None,
            stream=stream,
            extra_body=dict(options.extra_body or {}),
            extra_headers=checked(options.extra_headers, "extra_headers"),
            timeout=self.timeout if isinstance(options.timeout, _Unset) else Timeout.of(options.timeout),
        )

    # A client owns sockets: a "copy" that frameworks make of whatever holds one (deepcopy of a DSPy
    # program, of an AutoGen config) is the client itself, and a pickle is its settings.
    def __copy__(self: ClientT) -> ClientT:
        return self

    def __deepcopy__(self: ClientT, memo: dict[int, Any]) -> ClientT:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "timeout": self.timeout,
            "max_retries": self.max_retries,
            "dialect": self._route.dialect,
            "endpoints": self.endpoints,
            "headers": self._route.headers,
            "http": self._http,
            **self.defaults,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class Client(BaseClient):
    """A synchronous client of one server, or of several equal ones. Thread-safe.

        with Client("http://localhost:8000") as client:
            print(client.chat("What is the capital of France?").text)

    Every calling method takes the parameters of `myllm.params.Parameters` as keywords, and

        model, timeout: instead of the client's;
        extra_body: fields to send as they are, for what a server has beyond all known parameters;
        extra_headers: headers of this request alone;

    and raises what `myllm.errors` lists.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport = HTTPTransport(self.endpoints, self._http)

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ChatCompletion:
        """Answer a conversation: a list of messages, or a text as the user's one message."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("chat", messages, params, options, stream=False)
        answer = self._run(answer_flow(self._route, call))
        assert isinstance(answer, ChatCompletion)
        return answer

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Completion:
        """Continue a prompt: text, or token ids where the server takes them."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("completion", prompt, params, options, stream=False)
        answer = self._run(answer_flow(self._route, call))
        assert isinstance(answer, Completion)
        return answer

    def stream_chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Stream[ChatChunk, ChatCompletion]:
        """Answer a conversation chunk by chunk; returns once the server has accepted the request."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("chat", messages, params, options, stream=True)
        return self._open(call)

    def stream_complete(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Stream[CompletionChunk, Completion]:
        """Continue a prompt chunk by chunk; returns once the server has accepted the request."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("completion", prompt, params, options, stream=True)
        return self._open(call)

    def models(self, *, timeout: TimeoutLike | _Unset = UNSET) -> list[ModelInfo]:
        """Return the models that the server serves."""
        limit = self.timeout if isinstance(timeout, _Unset) else Timeout.of(timeout)
        return self._run(models_flow(self._route, limit))

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self, call: Call) -> Stream[Any, Any]:
        send, reply = self._run(stream_flow(self._route, call))
        return Stream(_parser(self._route, call, send, reply), reply.stream)

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        try:
            action = next(flow)
            while True:
                if isinstance(action, Sleep):
                    time.sleep(action.seconds)
                    action = flow.send(None)
                    continue
                try:
                    reply = self._transport.send(action)
                except Exception as exc:  # noqa: BLE001 - the flow decides, and re-raises
                    action = flow.throw(exc)
                else:
                    action = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result


class AsyncClient(BaseClient):
    """`Client` for asyncio: the same methods, awaited. Usable from several event loops.

        async with AsyncClient("http://localhost:8000") as client:
            print((await client.chat("What is the capital of France?")).text)

    A cancelled call closes its connection, and the server then stops generating.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport = AsyncHTTPTransport(self.endpoints, self._http)

    async def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> ChatCompletion:
        """See `Client.chat`."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("chat", messages, params, options, stream=False)
        answer = await self._run(answer_flow(self._route, call))
        assert isinstance(answer, ChatCompletion)
        return answer

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Completion:
        """See `Client.complete`."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("completion", prompt, params, options, stream=False)
        answer = await self._run(answer_flow(self._route, call))
        assert isinstance(answer, Completion)
        return answer

    def stream_chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> AsyncStreamOpening[ChatChunk, ChatCompletion]:
        """See `Client.stream_chat`; `async with` it, or `await` it."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("chat", messages, params, options, stream=True)
        return AsyncStreamOpening(self._open(call))

    def stream_complete(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        timeout: TimeoutLike | _Unset = UNSET,
        extra_body: Mapping[str, Any] | None = None,
        extra_headers: Mapping[str, str] | None = None,
        **params: Any,
    ) -> AsyncStreamOpening[CompletionChunk, Completion]:
        """See `Client.stream_complete`; `async with` it, or `await` it."""
        options = _Options(model, timeout, extra_body, extra_headers)
        call = self._call("completion", prompt, params, options, stream=True)
        return AsyncStreamOpening(self._open(call))

    async def models(self, *, timeout: TimeoutLike | _Unset = UNSET) -> list[ModelInfo]:
        """See `Client.models`."""
        limit = self.timeout if isinstance(timeout, _Unset) else Timeout.of(timeout)
        return await self._run(models_flow(self._route, limit))

    async def close(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _open(self, call: Call) -> AsyncStream[Any, Any]:
        send, reply = await self._run(stream_flow(self._route, call))
        return AsyncStream(_parser(self._route, call, send, reply), reply.stream)

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        try:
            action = next(flow)
            while True:
                if isinstance(action, Sleep):
                    await asyncio.sleep(action.seconds)
                    action = flow.send(None)
                    continue
                try:
                    reply = await self._transport.send(action)
                except Exception as exc:  # noqa: BLE001 - the flow decides, and re-raises
                    action = flow.throw(exc)
                else:
                    action = flow.send(reply)
        except StopIteration as stop:
            result: T = stop.value
            return result


def _parser(route: Route, call: Call, send: Send, reply: Reply) -> StreamParser:
    return StreamParser(call.kind, route.dialect.reader(call), send, reply)


def _checked_retries(max_retries: int) -> int:
    if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
        raise InvalidParameterError(
            f"`max_retries={max_retries!r}` must be a whole number, 0 or more.", param="max_retries"
        )
    return max_retries


def _checked_messages(messages: Any) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes) or not messages:
        raise InvalidParameterError(
            f"`messages={messages!r}` must be a text, or a list of at least one message such as "
            "{'role': 'user', 'content': 'Hello'}.",
            param="messages",
        )
    for position, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise InvalidParameterError(
                f"`messages[{position}]={message!r}` must be a mapping with a `role` and a `content`.",
                param="messages",
            )
    return [{**message} for message in messages]


def _checked_prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, bytes)
        and prompt
        and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in prompt)
    ):
        return list(prompt)
    raise InvalidParameterError(
        f"`prompt={prompt!r}` must be a text, or a list of token ids.", param="prompt"
    )
