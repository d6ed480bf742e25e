"""The nouns between the sans-IO core and the transports: what is asked, what is sent, what came back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .endpoints import Endpoint
from .errors import InvalidParameterError
from .params import Parameters

Kind = Literal["chat", "completion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout:
    """How long to wait, in seconds; `None` waits for ever.

    Attributes:
        connect: for a connection; retries of a failed connect share this budget, so that a wrong port
            answers within it.
        read: for the next byte, the first one included; a long answer that keeps coming never trips it.
        total: for the whole call, retries and waits included; for a stream, until its last event. A
            synchronous call looks at the clock between reads, each of which may last as long as was left
            when the answer began: a server that trickles can make it late, by less than `total` again.
    """

    connect: float | None = 5.0
    read: float | None = 300.0
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "read", "total"):
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
            return cls(read=None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidParameterError(
                f"`timeout={value!r}` is neither a number of seconds nor a `Timeout`.", param="timeout"
            )
        return cls(connect=min(5.0, value) if value > 0 else value, read=value, total=value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call as the user meant it, before any dialect."""

    kind: Kind
    model: str | None
    params: Parameters
    prompt: str | list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    stream: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    timeout: Timeout = field(default_factory=Timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRequest:
    """One HTTP request; `path` starts at the endpoint's root, `json` is the body or None."""

    method: str
    path: str
    json: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """What a flow asks its driver to do: send `request` to `endpoint` and come back with a `Reply`.

    With `stream`, a reply below 400 is handed back open: its `body` stays empty.
    """

    request: WireRequest
    endpoint: Endpoint
    headers: Mapping[str, str]
    timeout: Timeout
    stream: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """What a flow asks its driver to do: wait so many seconds."""

    seconds: float


@dataclass(slots=True, kw_only=True)
class Reply:
    """What a server answered. `stream` is the driver's open body, for requests sent with `stream`."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    stream: Any = None
