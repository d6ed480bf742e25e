"""What the servers answer: typed, in OpenAI's shape, whatever the server's dialect.

Every answer object keeps the server's own JSON in `.raw`. Fields that a server adds are kept as extra
attributes. `model_dump(exclude_none=True)` gives a body in OpenAI's wire format
(https://platform.openai.com/docs/api-reference/chat/object), which is what the adapters hand on.
"""

from __future__ import annotations

import base64
import json
import struct
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

ParsedT = TypeVar("ParsedT")


class Model(BaseModel):
    """Base of the answer types: unknown fields are kept, a dump speaks the wire's names."""

    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())


class Usage(Model):
    """Token counts of one request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: dict[str, Any] | None = None
    completion_tokens_details: dict[str, Any] | None = None


def _none_is_text(value: Any) -> Any:
    return "" if value is None else value


def _none_is_zero(value: Any) -> Any:
    return 0 if value is None else int(value) if isinstance(value, float) else value


def _none_is_nothing(value: Any) -> Any:
    return {} if value is None else value


def _as_json(value: Any) -> Any:
    """Ollama's own API and some proxies give a call's arguments as an object."""
    return "" if value is None else json.dumps(value) if isinstance(value, dict) else value


def _none_is_empty(value: Any) -> Any:
    return [] if value is None else value


class FunctionCall(Model):
    """The function a model wants called; `arguments` is JSON text, as the model wrote it."""

    name: str | None = None
    arguments: Annotated[str, BeforeValidator(_as_json)] = ""


class ToolCall(Model):
    """A tool call; in a stream, `index` says which call a fragment belongs to."""

    id: str | None = None
    type: str | None = "function"
    function: FunctionCall = Field(default_factory=FunctionCall)
    index: int | None = None


class Spoken(Model):
    """What messages and deltas share. `reasoning` is read from `reasoning` or `reasoning_content`.

    vLLM renamed the field around 0.12; servers of both ages are read.
    """

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = Field(None, exclude=True, repr=False)
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None

    def model_post_init(self, context: Any) -> None:
        """Take over the old name's value."""
        if self.reasoning is None and self.reasoning_content is not None:
            self.reasoning = self.reasoning_content


class Message(Spoken):
    """A chat message as answered."""

    role: str | None = "assistant"


class TopLogprob(Model):
    """A token with its natural-log probability and, where known, its exact bytes and id."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    token_id: int | None = Field(None, validation_alias=AliasChoices("token_id", "id"))


class TokenLogprob(TopLogprob):
    """One generated token and the likeliest alternatives at its place, best first."""

    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class Logprobs(Model):
    """The tokens of one choice with their log-probabilities, in order; one shape for all dialects."""

    content: list[TokenLogprob] | None = None


class Answer(Model):
    """What all whole answers share."""

    id: Annotated[str, BeforeValidator(_none_is_text)] = ""
    created: Annotated[int, BeforeValidator(_none_is_zero)] = 0
    model: str | None = None
    usage: Usage | None = None
    _raw: Any = PrivateAttr(default=None)
    _request_id: str | None = PrivateAttr(default=None)
    _endpoint: str | None = PrivateAttr(default=None)
    _cached: bool = PrivateAttr(default=False)

    @property
    def raw(self) -> Any:
        """The server's JSON as it came (a list of them when one call took several requests)."""
        return self._raw

    @property
    def request_id(self) -> str | None:
        """The id under which the request was sent, or the server's own when it answered with one."""
        return self._request_id

    @property
    def endpoint(self) -> str | None:
        """Base URL of the server that answered."""
        return self._endpoint

    @property
    def cached(self) -> bool:
        """Whether the answer came out of a `Cache`: nothing was sent for it."""
        return self._cached


class ChatChoice(Model):
    """One of the `n` answers of a chat call."""

    index: int = 0
    message: Message = Field(default_factory=Message)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None


class ChatCompletion(Answer):
    """The answer of a chat call."""

    object: str = "chat.completion"
    choices: Annotated[list[ChatChoice], BeforeValidator(_none_is_empty)] = Field(default_factory=list)

    @property
    def message(self) -> Message:
        """The first choice's message."""
        return self.choices[0].message

    @property
    def text(self) -> str:
        """The first choice's content; "" when there is none (a tool call, for example)."""
        return self.choices[0].message.content or ""


class ParsedChat(ChatCompletion, Generic[ParsedT]):
    """The answer of `client.parse`: a `ChatCompletion` whose first choice is also an object."""

    _parsed: Any = PrivateAttr(default=None)

    @property
    def parsed(self) -> ParsedT:
        """The first choice as the model class that was asked for."""
        value: ParsedT = self._parsed
        return value

    @classmethod
    def of(cls, answer: ChatCompletion, parsed: ParsedT) -> ParsedChat[ParsedT]:
        """Return `answer` with its object."""
        made = cls.model_construct(answer.model_fields_set, **dict(answer))
        for name, value in (answer.__pydantic_private__ or {}).items():
            setattr(made, name, value)
        made._parsed = parsed
        return made


class CompletionChoice(Model):
    """One of the `n` continuations of a prompt."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None


class Completion(Answer):
    """The answer of a completion call."""

    object: str = "text_completion"
    choices: Annotated[list[CompletionChoice], BeforeValidator(_none_is_empty)] = Field(default_factory=list)

    @property
    def text(self) -> str:
        """The first choice's text."""
        return self.choices[0].text


class Delta(Spoken):
    """What a chat chunk adds to a message."""


class ChatChunkChoice(Model):
    """What a chunk adds to one choice."""

    index: int = 0
    delta: Annotated[Delta, BeforeValidator(_none_is_nothing)] = Field(default_factory=Delta)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: Logprobs | None = None


class ChatChunk(Model):
    """One event of a chat stream; the one with the usage may have no choices."""

    id: Annotated[str, BeforeValidator(_none_is_text)] = ""
    object: str = "chat.completion.chunk"
    created: Annotated[int, BeforeValidator(_none_is_zero)] = 0
    model: str | None = None
    choices: Annotated[list[ChatChunkChoice], BeforeValidator(_none_is_empty)] = Field(default_factory=list)
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text that this chunk adds to the first choice."""
        return "".join(c.delta.content or "" for c in self.choices if c.index == 0)


class CompletionChunk(Model):
    """One event of a completion stream; `choices[i].text` is what it adds."""

    id: Annotated[str, BeforeValidator(_none_is_text)] = ""
    object: str = "text_completion"
    created: Annotated[int, BeforeValidator(_none_is_zero)] = 0
    model: str | None = None
    choices: Annotated[list[CompletionChoice], BeforeValidator(_none_is_empty)] = Field(default_factory=list)
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The text that this chunk adds to the first choice."""
        return "".join(c.text for c in self.choices if c.index == 0)


def _floats(value: Any) -> Any:
    """Decode OpenAI's `encoding_format="base64"`: little-endian 32-bit floats."""
    if isinstance(value, str):
        data = base64.b64decode(value, validate=True)
        return struct.unpack(f"<{len(data) // 4}f", data)
    return value


class Embedding(Model):
    """The vector of one text; `index` is the text's place in the call."""

    object: str = "embedding"
    index: int = 0
    embedding: Annotated[list[float], BeforeValidator(_floats)]


class Embeddings(Answer):
    """The answer of an embedding call."""

    object: str = "list"
    data: list[Embedding]

    @property
    def vectors(self) -> list[list[float]]:
        """The vectors, in the order of the texts."""
        return [entry.embedding for entry in sorted(self.data, key=lambda entry: entry.index)]


def _counts(value: Any) -> Any:
    """Give the token counts of the Responses API the names that they have everywhere else."""
    if isinstance(value, dict) and "input_tokens" in value:
        return {**value, "prompt_tokens": value["input_tokens"], "completion_tokens": value["output_tokens"]}
    return value


class Response(Answer):
    """The answer of OpenAI's Responses API: its items as they came."""

    object: str = "response"
    status: str | None = None
    output: list[dict[str, Any]]
    usage: Annotated[Usage | None, BeforeValidator(_counts)] = None

    @property
    def output_text(self) -> str:
        """What the model said, joined."""
        parts = [part for item in self.output for part in item.get("content") or () if "text" in part]
        return "".join(part["text"] for part in parts if part.get("type") == "output_text")


class Tokens(Answer):
    """A text or a conversation as the server's tokenizer sees it, special tokens included.

    Attributes:
        count: number of tokens.
        ids: the token ids, or None where the server tells their number only.
        texts: each token's text, or None where the server does not tell it.
        max_model_len: length of the model's context in tokens, or None where the server does not tell it.
    """

    count: int
    ids: list[int] | None = None
    texts: list[str] | None = None
    max_model_len: int | None = None


class Detokenized(Answer):
    """The text of token ids."""

    text: str


class ModelInfo(Model):
    """A model that a server serves; `max_model_len` in tokens where the server tells it."""

    id: str
    object: str = "model"
    created: Annotated[int, BeforeValidator(_none_is_zero)] = 0
    owned_by: Annotated[str, BeforeValidator(_none_is_text)] = ""
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
