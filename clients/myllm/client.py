"""`Client` and `AsyncClient`: thin drivers. What they do is decided in `flow.py`; they only move bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, Unpack

from pydantic import BaseModel

from . import constraints
from .base import UNSET, BaseClient, _Unset
from .batch import BatchResult, abatch, batch
from .cache import dump
from .coalesce import AsyncCoalescer, Coalescer
from .errors import InvalidParameterError, MyLLMError
from .fit import fit_flow
from .flow import Opened, answer_flow, models_flow, server_flow, stream_flow
from .job import Flow
from .options import CallOptions, EmbedOptions, RequestOptions, TimeoutLike, TokenizeOptions
from .params import SHAPES
from .stream import AsyncStoredBody, AsyncStream, AsyncStreamOpening, StoredBody, Stream
from .transport.health import HealthProber
from .transport.hedge import async_send_hedged, send_hedged
from .transport.http import AsyncHTTPTransport, HTTPTransport
from .types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Detokenized,
    Embeddings,
    ModelInfo,
    ParsedChat,
    Response,
    Tokens,
)
from .wire import Action, Call, Recall, Remember, Reply, Send, ServerInfo, Sleep

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)
Messages = str | Sequence[Mapping[str, Any]]


class Client(BaseClient):
    """A synchronous client of one server, or of several equal ones. Thread-safe.

        with Client("http://localhost:8000") as client:
            print(client.chat("What is the capital of France?").text)

    Every calling method takes the options of `myllm.options.RequestOptions` (`model`, `timeout`,
    `extra_body`, …) as keywords, those that generate also the parameters of `myllm.params.Parameters`, and
    all raise what `myllm.errors` lists.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._transport = HTTPTransport(self._http, self._max_concurrency)
        self._coalescer = Coalescer()
        self._prober = HealthProber(self._route.balancer, self._health_interval, self._http)

    def chat(self, messages: Messages, **options: Unpack[CallOptions]) -> ChatCompletion:
        """Answer a conversation: a list of messages, or a text as the user's one message."""
        answer: ChatCompletion = self._answer(self._call("chat", messages, options))
        return answer

    def complete(self, prompt: str | Sequence[int], **options: Unpack[CallOptions]) -> Completion:
        """Continue a prompt: text, or token ids where the server takes them."""
        answer: Completion = self._answer(self._call("completion", prompt, options))
        return answer

    def stream_chat(
        self, messages: Messages, **options: Unpack[CallOptions]
    ) -> Stream[ChatChunk, ChatCompletion]:
        """Answer a conversation chunk by chunk; returns once the server has accepted the request."""
        return self._open(self._call("chat", messages, options, stream=True))

    def stream_complete(
        self, prompt: str | Sequence[int], **options: Unpack[CallOptions]
    ) -> Stream[CompletionChunk, Completion]:
        """Continue a prompt chunk by chunk; returns once the server has accepted the request."""
        return self._open(self._call("completion", prompt, options, stream=True))

    def parse(
        self, model_class: type[ModelT], messages: Messages, **options: Unpack[CallOptions]
    ) -> ParsedChat[ModelT]:
        """Answer a conversation with a pydantic model: `.parsed`. The server is held to the model's schema.

        Raises:
            ConstraintNotEnforced: the answer is no such model, because it was cut off, for example.
        """
        answer = self.chat(messages, **_with_schema(options, model_class))
        return constraints.parsed(model_class, answer)

    def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        """Return the vectors of texts: `.vectors`, in the texts' order."""
        answer: Embeddings = self._answer(self._embed_call(texts, options))
        return answer

    def respond(self, input: Messages, **fields: Any) -> Response:
        """Make a response of OpenAI's Responses API: `.output_text`, `.output`.

        `fields` are those of `POST /v1/responses` and options of the call; the server checks them.
        """
        answer: Response = self._answer(self._response_call(input, fields))
        return answer

    def tokenize(self, subject: Messages, **options: Unpack[TokenizeOptions]) -> Tokens:
        """Return the tokens of a text, or of a conversation as the model would see it."""
        answer: Tokens = self._answer(self._tokenize_call(subject, options))
        return answer

    def detokenize(self, ids: Sequence[int], **options: Unpack[RequestOptions]) -> str:
        """Return the text of token ids."""
        answer: Detokenized = self._answer(self._detokenize_call(ids, options))
        return answer.text

    def fit(
        self, subject: Messages, max_tokens: int, *, keep: str = "end", **options: Unpack[TokenizeOptions]
    ) -> Any:
        """Shorten a text or a conversation so that it and `max_tokens` more tokens fit the model's context.

        Counted by the server's own tokenizer. What fits comes back as it is. A text loses its beginning
        (`keep="end"`) or its end (`keep="start"`); a conversation its oldest messages, but never a system
        message at its head, nor its last message.

        Raises:
            ContextLengthError: not even the last message fits.
            UnsupportedFeatureError: the server has no tokenizer endpoint.
        """
        return self._run(fit_flow(self._route, self._tokenize_call(subject, options), max_tokens, keep))

    def batch(
        self,
        requests: Iterable[Any],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[CallOptions],
    ) -> Generator[BatchResult, None, None]:
        """Answer many requests, `concurrency` at a time, and yield a `BatchResult` for each.

        See `myllm.batch.batch`. The calls go over connections of their own, under this client's policy,
        breaker, cache and limits; leaving the loop early cancels those on their way.
        """
        return batch(
            lambda: AsyncClient._sharing(self),
            requests,
            concurrency=concurrency,
            ordered=ordered,
            progress=progress,
            **options,
        )

    def models(self, *, timeout: _Unset | TimeoutLike = UNSET) -> list[ModelInfo]:
        """Return the models that the server serves."""
        return self._run(models_flow(self._route, self._limit(timeout)))

    def server_info(self, *, timeout: _Unset | TimeoutLike = UNSET) -> dict[str, ServerInfo | MyLLMError]:
        """Ask every server what it is: by URL, what it told, or the error that kept it from telling."""
        return self._run(server_flow(self._route, self._limit(timeout)))

    def close(self) -> None:
        """Close the connections."""
        self._prober.stop()
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _answer(self, call: Call) -> Any:
        key = self._shared_key(call)
        if key is None:
            return self._run(answer_flow(self._route, call))
        work = partial(self._run_call, call)
        # A copy each: answers may be changed by whom they belong to.
        return self._coalescer.run(key, work, call.timeout.total).model_copy(deep=True)

    def _run_call(self, call: Call) -> Any:
        return self._run(answer_flow(self._route, call))

    def _open(self, call: Call) -> Stream[Any, Any]:
        opened: Opened = self._run(stream_flow(self._route, call))
        if opened.stored is not None:
            return Stream(opened.parser, StoredBody(opened.stored))
        key = opened.key

        def keep(answer: Any) -> None:
            assert key is not None
            self._do(Remember(key=key, value=dump(answer)))

        return Stream(opened.parser, opened.body, None if key is None else keep)

    def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        try:
            action = next(flow)
            while True:
                try:
                    result = self._do(action)
                except Exception as exc:  # noqa: BLE001 - the flow decides, and re-raises
                    action = flow.throw(exc)
                else:
                    action = flow.send(result)
        except StopIteration as stop:
            answer: T = stop.value
            return answer
        finally:
            flow.close()  # where something else ended it, such as Ctrl-C

    def _do(self, action: Action) -> Reply | bytes | None:
        if isinstance(action, Send):
            self._prober.start()
            if action.backup_after is not None:
                return send_hedged(self._transport, action)
            return self._transport.send(action)
        if isinstance(action, Sleep):
            time.sleep(action.seconds)
        elif self._cache is not None:
            if isinstance(action, Recall):
                return self._cache.get(action.key)
            self._cache.put(action.key, action.value)
        return None


class AsyncClient(BaseClient):
    """`Client` for asyncio: the same methods, awaited. Usable from several event loops.

        async with AsyncClient("http://localhost:8000") as client:
            print((await client.chat("What is the capital of France?")).text)

    A cancelled call closes its connection, and the server then stops generating.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connect(self._health_interval)

    def _connect(self, health_interval: float | None) -> None:
        self._transport = AsyncHTTPTransport(self._http, self._max_concurrency)
        self._coalescer = AsyncCoalescer()
        self._prober = HealthProber(self._route.balancer, health_interval, self._http)

    @classmethod
    def _sharing(cls, other: BaseClient) -> AsyncClient:
        """Return a client with another one's settings, servers, limits and cache."""
        twin = cls.__new__(cls)
        twin.__dict__.update(other.__dict__)
        twin._connect(None)
        return twin

    async def chat(self, messages: Messages, **options: Unpack[CallOptions]) -> ChatCompletion:
        """See `Client.chat`."""
        answer: ChatCompletion = await self._answer(self._call("chat", messages, options))
        return answer

    async def complete(self, prompt: str | Sequence[int], **options: Unpack[CallOptions]) -> Completion:
        """See `Client.complete`."""
        answer: Completion = await self._answer(self._call("completion", prompt, options))
        return answer

    def stream_chat(
        self, messages: Messages, **options: Unpack[CallOptions]
    ) -> AsyncStreamOpening[ChatChunk, ChatCompletion]:
        """See `Client.stream_chat`; `async with` the result, or `await` it for the stream."""
        return AsyncStreamOpening(self._open(self._call("chat", messages, options, stream=True)))

    def stream_complete(
        self, prompt: str | Sequence[int], **options: Unpack[CallOptions]
    ) -> AsyncStreamOpening[CompletionChunk, Completion]:
        """See `Client.stream_complete`; `async with` the result, or `await` it for the stream."""
        return AsyncStreamOpening(self._open(self._call("completion", prompt, options, stream=True)))

    async def parse(
        self, model_class: type[ModelT], messages: Messages, **options: Unpack[CallOptions]
    ) -> ParsedChat[ModelT]:
        """See `Client.parse`."""
        answer = await self.chat(messages, **_with_schema(options, model_class))
        return constraints.parsed(model_class, answer)

    async def embed(self, texts: str | Sequence[str], **options: Unpack[EmbedOptions]) -> Embeddings:
        """See `Client.embed`."""
        answer: Embeddings = await self._answer(self._embed_call(texts, options))
        return answer

    async def respond(self, input: Messages, **fields: Any) -> Response:
        """See `Client.respond`."""
        answer: Response = await self._answer(self._response_call(input, fields))
        return answer

    async def tokenize(self, subject: Messages, **options: Unpack[TokenizeOptions]) -> Tokens:
        """See `Client.tokenize`."""
        answer: Tokens = await self._answer(self._tokenize_call(subject, options))
        return answer

    async def detokenize(self, ids: Sequence[int], **options: Unpack[RequestOptions]) -> str:
        """See `Client.detokenize`."""
        answer: Detokenized = await self._answer(self._detokenize_call(ids, options))
        return answer.text

    async def fit(
        self, subject: Messages, max_tokens: int, *, keep: str = "end", **options: Unpack[TokenizeOptions]
    ) -> Any:
        """See `Client.fit`."""
        return await self._run(fit_flow(self._route, self._tokenize_call(subject, options), max_tokens, keep))

    def batch(
        self,
        requests: Iterable[Any],
        *,
        concurrency: int = 64,
        ordered: bool = True,
        progress: bool = False,
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[BatchResult, None]:
        """See `Client.batch`; `async for` the results. `requests` may be an asynchronous iterable too."""
        return abatch(self, requests, concurrency=concurrency, ordered=ordered, progress=progress, **options)

    async def models(self, *, timeout: _Unset | TimeoutLike = UNSET) -> list[ModelInfo]:
        """See `Client.models`."""
        return await self._run(models_flow(self._route, self._limit(timeout)))

    async def server_info(
        self, *, timeout: _Unset | TimeoutLike = UNSET
    ) -> dict[str, ServerInfo | MyLLMError]:
        """See `Client.server_info`."""
        return await self._run(server_flow(self._route, self._limit(timeout)))

    async def close(self) -> None:
        """Close the connections of the running event loop; a later call opens new ones."""
        self._prober.stop()
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _answer(self, call: Call) -> Any:
        key = self._shared_key(call)
        if key is None:
            return await self._run(answer_flow(self._route, call))
        work = partial(self._run_call, call)
        return (await self._coalescer.run(key, work, call.timeout.total)).model_copy(deep=True)

    async def _run_call(self, call: Call) -> Any:
        return await self._run(answer_flow(self._route, call))

    async def _open(self, call: Call) -> AsyncStream[Any, Any]:
        opened: Opened = await self._run(stream_flow(self._route, call))
        if opened.stored is not None:
            return AsyncStream(opened.parser, AsyncStoredBody(opened.stored))
        key = opened.key

        async def keep(answer: Any) -> None:
            assert key is not None
            await self._do(Remember(key=key, value=dump(answer)))

        return AsyncStream(opened.parser, opened.body, None if key is None else keep)

    async def _run(self, flow: Flow[T]) -> T:
        """Drive a flow to its end."""
        try:
            action = next(flow)
            while True:
                try:
                    result = await self._do(action)
                except Exception as exc:  # noqa: BLE001 - the flow decides, and re-raises
                    action = flow.throw(exc)
                else:
                    action = flow.send(result)
        except StopIteration as stop:
            answer: T = stop.value
            return answer
        finally:
            flow.close()  # where something else ended it: a cancellation

    async def _do(self, action: Action) -> Reply | bytes | None:
        if isinstance(action, Send):
            self._prober.start()
            if action.backup_after is not None:
                return await async_send_hedged(self._transport, action)
            return await self._transport.send(action)
        if isinstance(action, Sleep):
            await asyncio.sleep(action.seconds)
        elif self._cache is not None:
            # The disk may take its time, and other processes hold it.
            if isinstance(action, Recall):
                if (found := self._cache.peek(action.key)) is not None:
                    return found
                return await asyncio.to_thread(self._cache.get, action.key)
            await asyncio.to_thread(self._cache.put, action.key, action.value)
        return None


def _with_schema(options: CallOptions, model_class: type[BaseModel]) -> CallOptions:
    if not (isinstance(model_class, type) and issubclass(model_class, BaseModel)):
        raise InvalidParameterError(
            f"`parse` wants a pydantic model class first, not {model_class!r}; `json_schema=` of `chat` "
            "takes other schemas.",
            param="model_class",
        )
    for name in SHAPES:
        if options.get(name) is not None:
            raise InvalidParameterError(
                f"`parse` says what the answer looks like: leave `{name}` out.", param=name
            )
    return {**options, "json_schema": model_class}
