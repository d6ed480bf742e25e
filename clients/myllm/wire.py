"""The nouns between the sans-IO core and the transports: what is asked, what is sent, what came back."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .endpoints import Endpoint
from .errors import InvalidParameterError
from .params import Parameters
from .types import ModelInfo

Kind = Literal["chat", "completion", "embedding", "response", "tokenize", "detokenize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """How long to wait, in seconds; `None` waits for ever.

    Attributes:
        connect: for a connection; retries of a failed connect share this budget, so that a wrong port
            answers within it.
        first_byte: from the request to the first byte of the answer's body: for a stream the first token,
            for any other call nearly the whole answer.
        idle: between two pieces of an answer that has begun.
        total: for the whole call, retries and waits included; for a stream, until its last event.
    """

    connect: float | None = 5.0
    first_byte: float | None = 300.0
    idle: float | None = 120.0
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "first_byte", "idle", "total"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (number and value > 0):
                raise InvalidParameterError(
                    f"`timeout`: `{name}={value!r}` must be a positive number of seconds, or None.",
                    param="timeout",
                )

    @classmethod
    def of(cls, value: Timeout | float | None) -> Timeout:
        """Read what a user may give: a `Timeout`, seconds for the whole call, or None for no limit."""
        if isinstance(value, Timeout):
            return value
        if value is None:
            return cls(first_byte=None, idle=None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameterError(
                f"`timeout={value!r}` is neither a number of seconds nor a `Timeout`.", param="timeout"
            )
        return cls(connect=min(5.0, value) if value > 0 else value, first_byte=value, idle=value, total=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """What is known of one server, by asking it or by being told.

    Attributes:
        dialect: name of its dialect.
        product: what it calls itself, for people: "vLLM 0.12.0".
        version: its version as numbers, or None when it did not tell: (0, 12, 0).
        models: what `GET /v1/models` (or the like) listed; empty when it was not asked.
        limits: its numbers where it tells them: "max_model_len", "max_best_of", "max_stop_sequences", ….
        features: what it said that it can do or was started with: "chat", "embeddings", "tokenize", ….
        facts: the answers that say so, by path, for `myllm doctor`.
    """

    dialect: str
    product: str = ""
    version: tuple[int, ...] | None = None
    models: tuple[ModelInfo, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    features: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as the user meant it, before any dialect.

    Attributes:
        prompt: of a completion: text or token ids; of "tokenize" the text, of "detokenize" the token ids.
        messages: of a chat; of "tokenize" when a conversation is to be counted.
        inputs: of an embedding: the texts, or the token ids of each.
        extra_body: fields to send as they are; of a "response" all of them.
        session: calls of one session go to one server, where several can take them and it is not overloaded.
        cache: False keeps this call away from the client's cache.
    """

    kind: Kind
    model: str | None
    params: Parameters
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    inputs: list[str | list[int]] | None = None
    stream: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: Timeout = field(default_factory=Timeout)
    session: str | None = None
    cache: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRequest:
    """One HTTP request; `path` starts at the endpoint's root.

    The body is `json`, or `content` as it is, or none.
    """

    method: str
    path: str
    json: Any = None
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """What a flow asks its driver to do: send `request` to `endpoint` and come back with a `Reply`.

    Attributes:
        timeout: the limits of this try, in seconds; not its `total`: that is what `deadline` is for.
        deadline: when the whole call must have ended, on the monotonic clock; None: never.
        stream: a reply below 300 is handed back open: its `body` stays empty.
        backup: makes the same request for another server, or None when there is none.
        backup_after: seconds without an answer after which the backup is sent too; the first good reply wins.
        at_once: not sent at all unless one of the client's `max_concurrency` places is free: of backups.
        lost: called when the other one of the two won, with what became of this one: a reply that was no
            better, an error, or None where it was still waited for.
    """

    request: WireRequest
    endpoint: Endpoint
    headers: Mapping[str, str] = field(repr=False)  # a key may be among them
    timeout: Timeout
    deadline: float | None = None
    stream: bool = False
    backup: Callable[[], Send | None] | None = None
    backup_after: float | None = None
    at_once: bool = False
    lost: Callable[[Reply | Exception | None], None] | None = None

    @property
    def request_id(self) -> str | None:
        """The id under which the request is sent."""
        return self.headers.get("X-Request-Id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """What a flow asks its driver to do: wait so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """What a flow asks its driver to do: look `key` up in the cache; the answer is the value or None."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """What a flow asks its driver to do: put a value into the cache."""

    key: str
    value: bytes


Action = Send | Sleep | Recall | Remember


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a server answered.

    Attributes:
        headers: with names in lower case.
        stream: the driver's open body, for requests sent with `stream`.
        send: the request that this answers: the backup, where that one won.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: Any = None
    send: Send | None = None


def new_request_id() -> str:
    """Return a fresh request id, sent as `X-Request-Id`."""
    return uuid.uuid4().hex  # llama-cpp-python's server answers 400 to any id that is no UUID
