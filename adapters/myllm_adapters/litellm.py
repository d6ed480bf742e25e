"""LiteLLM: the provider `myllm/…`.

    import litellm
    import myllm_adapters.litellm  # registers the provider

    litellm.completion(model="myllm/smollm2", messages=[{"role": "user", "content": "Hello!"}],
                       api_base="http://localhost:8000")

Works with `completion`, `acompletion`, `text_completion`, `atext_completion`, streaming or not, `Router`,
fallbacks, caching and callbacks. Beside LiteLLM's own arguments every parameter of
`myllm.params.Parameters` is one (`top_k=…`, `min_p=…`, the constraints `json_schema=`, `regex=`, `choice=`,
`grammar=`), and an unknown name is refused. Each server is asked once what it is; `dialect="vllm"` (or "tgi",
…) says it. `api_base` defaults to `MYLLM_BASE_URL`, then `OPENAI_BASE_URL`, then
http://localhost:8000, `api_key` to `MYLLM_API_KEY`; `ssl_verify` (False, or a CA bundle) to the environment's
`SSL_VERIFY`, then `litellm.ssl_verify`. Retries are LiteLLM's (`num_retries=`), there are none underneath.

In the proxy's configuration:

    litellm_settings:
      custom_provider_map:
        - {"provider": "myllm", "custom_handler": myllm_adapters.litellm.handler}
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NoReturn, TypeVar

import myllm
from myllm import (
    AsyncClient,
    ChatChunk,
    ChatCompletion,
    Client,
    Completion,
    CompletionChunk,
    Stream,
    Usage,
)
from myllm.endpoints import Endpoint, resolve_endpoints

from ._extra import missing_extra

try:
    import httpx
    import litellm
    from litellm import exceptions
    from litellm.llms.custom_httpx.http_handler import get_ssl_verify
    from litellm.llms.custom_llm import CustomLLM
    from litellm.types.utils import (
        GenericStreamingChunk,
        ModelResponse,
        ModelResponseStream,
        TextCompletionResponse,
    )
    from litellm.utils import custom_llm_setup
except ImportError as exc:
    raise missing_extra(__name__, "litellm", exc) from exc

PROVIDER = "myllm"
"""The prefix of the models that come here."""

_PROMPTS_AT_ONCE = 32
_ResponseT = TypeVar("_ResponseT", ModelResponse, TextCompletionResponse, ModelResponseStream)


class MyLLMProvider(CustomLLM):
    """LiteLLM's handler for `myllm/…`; stateless, usable by all threads and event loops.

    LiteLLM calls the methods with keywords (`litellm/llms/custom_llm.py`). They raise LiteLLM's exceptions
    only, with the SDK's messages.
    """

    def completion(self, *_: Any, **request: Any) -> Any:
        """Answer a chat, or the prompts of `text_completion`."""
        with _litellm_errors(request["model"]):
            job = _Job.of(request)
            if not job.prompts:
                return job.chat_response(job.client.chat(job.messages, **job.arguments))
            client = job.client
            with ThreadPoolExecutor(min(len(job.prompts), _PROMPTS_AT_ONCE)) as pool:
                calls = [pool.submit(client.complete, prompt, **job.arguments) for prompt in job.prompts]
                wait(calls, return_when=FIRST_EXCEPTION)
                # After a failure nothing more is started; what a thread has begun, it ends.
                pool.shutdown(cancel_futures=True)
            return job.text_response([call.result() for call in calls])

    async def acompletion(self, *_: Any, **request: Any) -> Any:
        """See `completion`."""
        with _litellm_errors(request["model"]):
            job = _Job.of(request)
            if not job.prompts:
                return job.chat_response(await job.async_client.chat(job.messages, **job.arguments))
            client = job.async_client
            turn = asyncio.Semaphore(_PROMPTS_AT_ONCE)

            async def complete(prompt: str) -> Completion:
                async with turn:
                    return await client.complete(prompt, **job.arguments)

            try:
                async with asyncio.TaskGroup() as group:  # a failure cancels the others
                    calls = [group.create_task(complete(prompt)) for prompt in job.prompts]
            except ExceptionGroup as failures:
                first = failures.exceptions[0]
                raise first from first.__cause__
            return job.text_response([call.result() for call in calls])

    def streaming(self, *_: Any, **request: Any) -> Iterator[Any]:
        """Answer chunk by chunk; a refusal is raised here, before there is a stream."""
        with _litellm_errors(request["model"]):
            job = _Job.of(request, stream=True)
            if job.prompts:
                return _Chunks(job.client.stream_complete(job.one_prompt, **job.arguments), job.model)
            return _Chunks(job.client.stream_chat(job.messages, **job.arguments), job.model)

    async def astreaming(  # type: ignore[override]  # LiteLLM's own docs return an async generator here
        self, *_: Any, **request: Any
    ) -> AsyncIterator[Any]:
        """See `streaming`; LiteLLM wants an async generator, so a refusal is raised by the first chunk."""
        end = _StreamEnd()
        with _litellm_errors(request["model"]):
            job = _Job.of(request, stream=True)
            stream: Any
            if job.prompts:
                stream = await job.async_client.stream_complete(job.one_prompt, **job.arguments)
            else:
                stream = await job.async_client.stream_chat(job.messages, **job.arguments)
            async with stream:
                async for chunk in stream:
                    if (delta := _delta(chunk, job.model, end)) is not None:
                        yield delta
        yield end.chunk()

    def embedding(self, *_: Any, **request: Any) -> Any:
        """Refuse: there are no embeddings here."""
        _refuse_embedding(request["model"])

    async def aembedding(self, *_: Any, **request: Any) -> Any:
        """Refuse: there are no embeddings here."""
        _refuse_embedding(request["model"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One request of LiteLLM's in the SDK's words."""

    model: str
    messages: list[dict[str, Any]]
    prompts: list[str]
    endpoints: tuple[Endpoint, ...]
    dialect: str
    verify: bool | str
    arguments: dict[str, Any]
    logging: Any

    @classmethod
    def of(cls, request: Mapping[str, Any], *, stream: bool = False) -> _Job:
        options = dict(request["optional_params"])
        # `stream` is known from the method, the usage of a stream is always asked for, and LiteLLM
        # retries by itself.
        for name in ("stream", "stream_options", "max_retries"):
            options.pop(name, None)
        dialect = options.pop("dialect", "auto")
        settings = request.get("litellm_params") or {}
        is_text = bool(settings.get("text_completion"))
        messages = request["messages"]
        job = cls(
            model=request["model"],
            messages=messages,
            # LiteLLM packs each prompt of `text_completion` into a user message.
            prompts=[message["content"] for message in messages] if is_text else [],
            endpoints=resolve_endpoints(request.get("api_base") or None, request.get("api_key") or None),
            dialect=dialect,
            verify=_verify(settings.get("ssl_verify")),
            arguments={
                **options,
                "model": request["model"],
                "timeout": _timeout(request.get("timeout"), stream=stream),
                "extra_headers": request.get("headers") or None,
            },
            logging=request["logging_obj"],
        )
        job.logging.pre_call(
            input=messages,
            api_key=request.get("api_key"),
            additional_args={"complete_input_dict": options, "api_base": job.endpoints[0].url},
        )
        return job

    @property
    def client(self) -> Client:
        return _client(self.endpoints, self.dialect, self.verify)

    @property
    def async_client(self) -> AsyncClient:
        return _async_client(self.endpoints, self.dialect, self.verify)

    @property
    def one_prompt(self) -> str:
        if len(self.prompts) != 1:
            raise myllm.InvalidParameterError(
                f"`prompt` has {len(self.prompts)} texts, but a stream is of one: open a stream for each.",
                param="prompt",
            )
        return self.prompts[0]

    def chat_response(self, answer: ChatCompletion) -> ModelResponse:
        self.logging.post_call(original_response=answer.raw)
        body = answer.model_dump(exclude_none=True)
        for choice in body["choices"]:
            message = choice["message"]
            message.setdefault("content", None)
            if "reasoning" in message:
                message["reasoning_content"] = message.pop("reasoning")
        return _of_provider(ModelResponse(**{**body, "model": answer.model or self.model}))

    def text_response(self, answers: Sequence[Completion]) -> TextCompletionResponse:
        """Return one answer to all prompts, their choices numbered through as OpenAI does."""
        self.logging.post_call(original_response=[answer.raw for answer in answers])
        choices: list[dict[str, Any]] = []
        for answer in answers:
            for choice in answer.choices:
                body = choice.model_dump(exclude_none=True)
                body.update(index=len(choices), logprobs=_legacy_logprobs(answer, choice.index))
                choices.append(body)
        first = answers[0]
        return _of_provider(
            TextCompletionResponse(
                id=first.id or None,
                created=first.created or None,
                model=first.model or self.model,
                choices=choices,
                usage=_total_usage(answers),
            )
        )


def _of_provider(response: _ResponseT) -> _ResponseT:
    response._hidden_params["custom_llm_provider"] = PROVIDER  # `completion_cost` looks here
    return response


@lru_cache(maxsize=256)
def _client(endpoints: tuple[Endpoint, ...], dialect: str, verify: bool | str) -> Client:
    return Client(endpoints=endpoints, dialect=dialect, max_retries=0, http=myllm.HTTPOptions(verify=verify))


@lru_cache(maxsize=256)
def _async_client(endpoints: tuple[Endpoint, ...], dialect: str, verify: bool | str) -> AsyncClient:
    return AsyncClient(
        endpoints=endpoints, dialect=dialect, max_retries=0, http=myllm.HTTPOptions(verify=verify)
    )


def _verify(of_call: Any) -> bool | str:
    """Return whether to trust any certificate (False), the usual ones (True), or those of a bundle (a path).

    As LiteLLM's own providers read it: the call's `ssl_verify`, `SSL_VERIFY`, `litellm.ssl_verify`.
    """
    verify: Any = get_ssl_verify(of_call)
    if not isinstance(verify, bool | str):
        raise myllm.InvalidParameterError(
            f"`ssl_verify={verify!r}` must be True, False or the path of a CA bundle.", param="ssl_verify"
        )
    return True if verify == "" else verify  # an empty `SSL_VERIFY` says nothing


def _timeout(value: Any, *, stream: bool) -> myllm.Timeout:
    """Read LiteLLM's timeout; in a stream it limits the silence, for a stream may last longer."""
    if value is None:
        return myllm.Timeout()
    if isinstance(value, httpx.Timeout):
        return myllm.Timeout(connect=value.connect, first_byte=value.read, idle=value.read)
    limits = myllm.Timeout.of(float(value))
    return replace(limits, total=None) if stream else limits


class _Chunks:
    """A synchronous stream in LiteLLM's words. Closing it closes the stream even before its first chunk,
    when a generator would not have begun; one that is dropped is closed by the SDK's stream itself."""

    def __init__(
        self, stream: Stream[ChatChunk, ChatCompletion] | Stream[CompletionChunk, Completion], model: str
    ) -> None:
        self._stream = stream
        self._closed = False
        self._chunks = self._run(stream, model)

    @staticmethod
    def _run(stream: Stream[Any, Any], model: str) -> Iterator[ModelResponseStream | GenericStreamingChunk]:
        end = _StreamEnd()
        with _litellm_errors(model), stream:
            for chunk in stream:
                if (delta := _delta(chunk, model, end)) is not None:
                    yield delta
        yield end.chunk()

    def __iter__(self) -> _Chunks:
        return self

    def __next__(self) -> ModelResponseStream | GenericStreamingChunk:
        if self._closed:
            raise StopIteration
        return next(self._chunks)

    def close(self) -> None:
        """Close the connection; the server then stops generating. Also from another thread."""
        self._closed = True
        self._stream.close()


class _StreamEnd:
    """What a stream's last chunk tells LiteLLM.

    Deltas go as `ModelResponseStream`, which keeps index, logprobs and tool calls but loses the server's
    usage and ends the stream at the first finish_reason; the end therefore goes as one
    `GenericStreamingChunk` with both (`_dispatch_provider_chunk` in LiteLLM's `streaming_handler.py`).
    """

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}
        self.usage: Usage | None = None

    def chunk(self) -> GenericStreamingChunk:
        usage: Any = None if self.usage is None else self.usage.model_dump(exclude_none=True)
        return GenericStreamingChunk(
            text="",
            tool_use=None,
            is_finished=True,
            finish_reason=self.reasons[min(self.reasons)] if self.reasons else "stop",
            usage=usage,
            index=0,
        )


def _delta(chunk: ChatChunk | CompletionChunk, model: str, end: _StreamEnd) -> ModelResponseStream | None:
    """Return what a chunk adds, if anything, and keep its part of the end."""
    end.usage = chunk.usage or end.usage
    choices: list[dict[str, Any]] = []
    for choice in chunk.choices:
        if choice.finish_reason is not None:
            end.reasons[choice.index] = choice.finish_reason
        if isinstance(chunk, ChatChunk):
            delta = choice.delta.model_dump(exclude_none=True)  # type: ignore[union-attr]
        else:
            delta = {"content": choice.text} if choice.text else {}  # type: ignore[union-attr]
        logprobs = choice.logprobs.model_dump(exclude_none=True) if choice.logprobs else None
        if delta or logprobs:
            choices.append({"index": choice.index, "delta": delta, "logprobs": logprobs})
    if not choices:
        return None
    return _of_provider(
        ModelResponseStream(
            id=chunk.id or None,
            created=chunk.created or None,
            model=chunk.model or model,
            choices=choices,  # type: ignore[arg-type]  # it takes dicts, whatever it says
        )
    )


def _legacy_logprobs(answer: Completion, index: int) -> dict[str, Any] | None:
    """Return a choice's log-probabilities as the completion endpoint has them: parallel lists."""
    raw = answer.raw.get("choices") if isinstance(answer.raw, dict) else None
    if raw:
        found: dict[str, Any] | None = next(
            (c.get("logprobs") for c in raw if c.get("index", 0) == index), None
        )
        return found
    logprobs = next(choice.logprobs for choice in answer.choices if choice.index == index)
    if logprobs is None:
        return None
    tokens = logprobs.content or []
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token.token))
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.token: top.logprob for top in token.top_logprobs} for token in tokens],
        "text_offset": starts[:-1],
    }


def _total_usage(answers: Sequence[Completion]) -> litellm.Usage:
    known = [answer.usage for answer in answers if answer.usage is not None]
    return litellm.Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in known),
        completion_tokens=sum(usage.completion_tokens for usage in known),
        total_tokens=sum(usage.total_tokens for usage in known),
    )


@contextmanager
def _litellm_errors(model: str) -> Iterator[None]:
    try:
        yield
    except myllm.MyLLMError as exc:
        raise _litellm_error(exc, model) from exc


# The first that fits; the class must be LiteLLM's own, or LiteLLM wraps it in one that says less.
_ERRORS: tuple[tuple[type[myllm.MyLLMError], Callable[..., Exception]], ...] = (
    (myllm.UnsupportedFeatureError, exceptions.UnsupportedParamsError),
    (myllm.InvalidParameterError, exceptions.BadRequestError),
    (myllm.ContextLengthError, exceptions.ContextWindowExceededError),
    (myllm.BadRequestError, exceptions.BadRequestError),
    (myllm.ValidationError, exceptions.UnprocessableEntityError),
    (myllm.NotFoundError, exceptions.NotFoundError),
    (myllm.RateLimitError, exceptions.RateLimitError),
    (myllm.OverloadedError, exceptions.ServiceUnavailableError),
    (myllm.ServerError, exceptions.InternalServerError),
)


def _litellm_error(error: myllm.MyLLMError, model: str) -> Exception:
    """Return LiteLLM's exception for ours, with our message."""
    about: dict[str, Any] = {"message": str(error), "model": model, "llm_provider": PROVIDER}
    if isinstance(error, myllm.RequestTimeoutError):
        return exceptions.Timeout(**about)
    if isinstance(error, myllm.AuthenticationError):
        denied = exceptions.PermissionDeniedError if error.status == 403 else exceptions.AuthenticationError
        return denied(**about, response=_response(error))
    for ours, theirs in _ERRORS:
        if isinstance(error, ours):
            return theirs(**about, response=_response(error))
    if isinstance(error, myllm.InvalidResponseError):
        return exceptions.APIResponseValidationError(**about)
    if isinstance(error, myllm.APIStatusError):
        return exceptions.APIError(status_code=error.status or 500, **about)
    return exceptions.APIConnectionError(**about)


def _response(error: myllm.MyLLMError) -> httpx.Response:
    """Return the reply that LiteLLM reads the status and the wish for a pause from."""
    headers = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:g}"}
    request = httpx.Request("POST", error.endpoint or "http://localhost")
    return httpx.Response(error.status or 400, headers=headers, request=request)


def _refuse_embedding(model: str) -> NoReturn:
    raise exceptions.BadRequestError(
        message="The provider `myllm` generates text; it has no embeddings.",
        model=model,
        llm_provider=PROVIDER,
    )


handler = MyLLMProvider()
"""The handler that is registered; a proxy's configuration names it."""


def register() -> None:
    """Register the provider; importing this module has done it already.

    Needed again only after `litellm.custom_provider_map` was replaced. Harmless when repeated.
    """
    for entry in litellm.custom_provider_map:
        if entry["provider"] == PROVIDER:
            entry["custom_handler"] = handler
            break
    else:
        litellm.custom_provider_map.append({"provider": PROVIDER, "custom_handler": handler})
    # LiteLLM does this in its first call; `get_llm_provider` and `Router` want to know the provider before.
    custom_llm_setup()  # type: ignore[no-untyped-call]


register()
