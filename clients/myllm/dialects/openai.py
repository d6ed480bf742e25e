"""Any server with OpenAI's API, and nothing taken for granted beyond it.

Wire format: https://platform.openai.com/docs/api-reference (chat, completions, streaming).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError as PydanticValidationError

from ..constraints import schema_in
from ..errors import APIStatusError, InvalidResponseError, ServerError, error_class_for_status, short
from ..params import SHAPES
from ..types import (
    Answer,
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChunk,
    Embeddings,
    Model,
    Response,
)
from ..wire import Call, Reply, ServerInfo, WireRequest
from ._base import DONE, ChunkReader, ServerWords, _Done, is_neutral, load_json, refuse
from .embeddings import openai_answer, openai_request
from .tokenizers import TokenizerRoutes, tokenizer_answer, tokenizer_request

_COMMON = frozenset(
    {"max_tokens", "temperature", "top_p", "n", "stop", "seed", "frequency_penalty", "presence_penalty",
     "logit_bias", "user"}
)  # fmt: skip
_CHAT_ONLY = frozenset({"tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"})
_HOW_TO_USE_TOOLS = (
    ("tool_choice", "auto"),
    ("tool_choice", "none"),
    ("parallel_tool_calls", True),
    ("parallel_tool_calls", False),
)
_COMPLETION_ONLY = frozenset({"echo", "suffix", "best_of"})


class OpenAIDialect:
    """OpenAI's own parameters under OpenAI's own names."""

    name = "openai"
    chat_params: frozenset[str] = _COMMON | _CHAT_ONLY
    completion_params: frozenset[str] = _COMMON | _COMPLETION_ONLY
    tokenizer: TokenizerRoutes | None = None

    def depends_on_server(self, call: Call) -> bool:
        """See `Dialect.depends_on_server`."""
        return False

    def requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """See `Dialect.requests`."""
        if call.kind == "embedding":
            return [self.embedding_request(call)]
        if call.kind == "response":
            named = {} if call.model is None else {"model": call.model}
            return [WireRequest(method="POST", path="/v1/responses", json={**named, **call.extra_body})]
        if call.kind in ("tokenize", "detokenize"):
            return [tokenizer_request(self.tokenizer, call, self.name)]
        return self.generation_requests(call, server)

    def embedding_request(self, call: Call) -> WireRequest:
        """Return the request for embeddings."""
        return openai_request(call)

    def generation_requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """Return the requests of a chat or a completion; here always one."""
        path = "/v1/chat/completions" if call.kind == "chat" else "/v1/completions"
        return [WireRequest(method="POST", path=path, json={**self.body(call, server), **call.extra_body})]

    def body(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        """Return the body of a chat's or a completion's request, without `extra_body`.

        Raises:
            UnsupportedFeatureError: the server has no word for a parameter that would matter.
        """
        body: dict[str, Any] = {} if call.model is None else {"model": call.model}
        if call.kind == "chat":
            where, known = "the chat endpoint", self.chat_params
            body["messages"] = call.messages
        else:
            where, known = "the completion endpoint", self.completion_params
            body["prompt"] = call.prompt
        self._put_logprobs(call, body)
        for name, value in call.params.set_values().items():
            if name in ("logprobs", "top_logprobs") or (name == "tools" and not value):
                continue
            if call.params.tools == [] and (name, value) in _HOW_TO_USE_TOOLS:
                continue  # servers refuse to be told how to use none
            if name == "response_format" and value.get("type") == "json_object" and schema_in(value):
                name, value = "json_schema", schema_in(value)  # most servers would not read it there
            if name in SHAPES:
                body.update(self.shape(call, name, value, server))
            elif name in known:
                # Also a neutral value: the server's own default (generation_config.json) may be another.
                body[name] = value
            elif not is_neutral(name, value):
                raise refuse(name, value, self.name, where)
        if call.stream:
            body["stream"] = True
            body["stream_options"] = {"include_usage": True}
        return body

    def shape(self, call: Call, name: str, value: Any, server: ServerInfo) -> dict[str, Any]:
        """Return the fields that say what the answer must look like, for one of `params.SHAPES`.

        Raises:
            UnsupportedFeatureError: the server cannot do it.
        """
        if call.kind == "chat" and name == "response_format":
            return {"response_format": value}
        if call.kind == "chat" and name == "json_schema":
            return {"response_format": json_schema_format(value)}
        if is_neutral(name, value):
            return {}
        raise refuse(
            name, value, self.name, f"the {call.kind} endpoint", "Ask for it in the prompt's own words."
        )

    @staticmethod
    def _put_logprobs(call: Call, body: dict[str, Any]) -> None:
        wanted = call.params.wanted_logprobs
        if wanted is None:
            return
        if call.kind == "chat":
            body["logprobs"] = True
            body["top_logprobs"] = wanted
        else:
            body["logprobs"] = wanted

    def answer(self, call: Call, replies: Sequence[Reply]) -> Answer:
        """See `Dialect.answer`."""
        if call.kind == "embedding":
            return self.embeddings(call, load_json(replies[0].body))
        if call.kind == "response":
            raw = load_json(replies[0].body)
            response = _parse(Response, raw)
            response._raw = raw
            return response
        if call.kind in ("tokenize", "detokenize"):
            return tokenizer_answer(self.tokenizer, call, load_json(replies[0].body))
        return self.generated(call, replies)

    def embeddings(self, call: Call, raw: Any) -> Embeddings:
        """Read the answer to `embedding_request`."""
        return openai_answer(call, raw)

    def generated(self, call: Call, replies: Sequence[Reply]) -> ChatCompletion | Completion:
        """Read the replies to `generation_requests`."""
        (reply,) = replies
        raw = load_json(reply.body)
        answer: ChatCompletion | Completion
        answer = _parse(ChatCompletion, raw) if call.kind == "chat" else _parse(Completion, raw)
        if not answer.choices:
            raise InvalidResponseError(f"The answer has no `choices`: {short(raw)}.")
        answer._raw = raw
        return answer

    def reader(self, call: Call) -> ChunkReader:
        """See `Dialect.reader`."""
        return OpenAIReader(call, self)

    def server_words(self, body: Any) -> ServerWords:
        """Read OpenAI's nested error, vLLM's old flat one, FastAPI's `detail`, or plain text."""
        if isinstance(body, str):
            text = body.strip()
            return ServerWords(message=(text if len(text) <= 500 else f"{text[:500]}…") or None)
        if not isinstance(body, dict):
            return ServerWords()
        error = body.get("error", body)
        if isinstance(error, str):
            return ServerWords(message=error, type=_text(body.get("error_type")))
        if not isinstance(error, dict):
            return ServerWords(message=str(error))
        message = error.get("message", error.get("detail"))
        param = error.get("param")
        if isinstance(message, list):  # FastAPI's list of what pydantic found
            message, param = _fastapi_words(message)
        return ServerWords(
            message=None if message is None else _text(message),
            type=_text(error.get("type")),
            code=_text(error.get("code")),
            param=_text(param),
        )


class OpenAIReader:
    """Reads OpenAI's stream: chunks, then `[DONE]`."""

    def __init__(self, call: Call, dialect: OpenAIDialect) -> None:
        self._chat = call.kind == "chat"
        self._many = call.params.n or 1
        self._dialect = dialect
        self._open: set[int] = set()
        self._finished: set[int] = set()

    ended = False  # usage and [DONE] may follow the last text

    @property
    def complete(self) -> bool:
        """Every choice has its finish_reason; some servers then leave `[DONE]` out."""
        return len(self._finished) >= self._many and self._open <= self._finished

    def read(self, data: bytes) -> ChatChunk | CompletionChunk | _Done | None:
        """See `ChunkReader.read`."""
        if data.strip() == b"[DONE]":
            return DONE
        raw = load_json(data)
        if isinstance(raw, dict) and (
            raw.get("error") is not None or ("choices" not in raw and "message" in raw)  # nested, or flat
        ):
            raise self._error(raw)
        chunk: ChatChunk | CompletionChunk
        chunk = _parse(ChatChunk, raw) if self._chat else _parse(CompletionChunk, raw)
        for choice in chunk.choices:
            self._open.add(choice.index)
            if choice.finish_reason is not None:
                self._finished.add(choice.index)
        return chunk

    def _error(self, raw: dict[str, Any]) -> APIStatusError:
        words = self._dialect.server_words(raw)
        error = raw.get("error") or raw
        status = error.get("http_status_code", error.get("code")) if isinstance(error, dict) else None
        if not isinstance(status, int) or not 400 <= status < 600:
            status = None
        cls = ServerError if status is None else error_class_for_status(status)
        return cls(
            "The server broke the stream off with an error.",
            status=status,
            server_message=words.message,
            body=raw,
        )


def json_schema_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return OpenAI's `response_format` for a JSON Schema.

    Format: https://platform.openai.com/docs/guides/structured-outputs; a name is obligatory there.
    """
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", str(schema.get("title") or "answer"))[:64]
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}


def legacy_logprobs(value: dict[str, Any]) -> dict[str, Any]:
    """Turn the completion endpoint's parallel lists into the chat endpoint's list of tokens.

    Format: https://platform.openai.com/docs/api-reference/completions/object, `choices[].logprobs`.
    With `echo` the first token has no log-probability; it is left out.
    """
    tokens = value.get("tokens") or []
    logprobs = value.get("token_logprobs") or []
    tops = value.get("top_logprobs") or [None] * len(tokens)
    content = []
    for token, logprob, top in zip(tokens, logprobs, tops, strict=True):
        if logprob is None:
            continue
        best = sorted((top or {}).items(), key=lambda item: -item[1])
        content.append(
            {
                "token": token,
                "logprob": logprob,
                "top_logprobs": [{"token": text, "logprob": value} for text, value in best],
            }
        )
    return {"content": content}


_AnswerT = TypeVar("_AnswerT", bound=Model)


def _parse(cls: type[_AnswerT], raw: Any) -> _AnswerT:
    if not isinstance(raw, dict):
        raise InvalidResponseError(f"The answer is not a JSON object: {short(raw)}.")
    if cls is Completion or cls is CompletionChunk:
        raw = {**raw, "choices": [_with_logprobs(choice) for choice in raw.get("choices") or ()]}
    try:
        return cls.model_validate(raw)
    except PydanticValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidResponseError(
            f"The answer is not OpenAI's: at `{where}`: {first['msg'].lower()}: {short(raw)}.",
            hint="Is `dialect=` right for this server?",
        ) from None


def _with_logprobs(choice: Any) -> Any:
    if isinstance(choice, dict) and "tokens" in (choice.get("logprobs") or ()):
        return {**choice, "logprobs": legacy_logprobs(choice["logprobs"])}
    return choice


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def _fastapi_words(details: list[Any]) -> tuple[str, str | None]:
    """Read FastAPI's `detail`: the message, and the field of the first complaint."""
    words, fields = [], []
    for detail in details:
        if isinstance(detail, dict) and "msg" in detail:
            place = [str(part) for part in detail.get("loc") or () if part != "body"]
            words.append(f"{'.'.join(place)}: {detail['msg']}" if place else str(detail["msg"]))
            fields.extend(place[:1])
        else:
            words.append(str(detail))
    return "; ".join(words), fields[0] if fields else None
