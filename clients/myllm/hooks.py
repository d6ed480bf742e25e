"""Hooks: what a user may watch of every call. OpenTelemetry (`myllm.telemetry`) is one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import MyLLMError
from .types import Answer
from .wire import Call, Send, ServerInfo


@dataclass(slots=True, eq=False)
class CallRecord:
    """One call, from its beginning to its end; filled in as it goes.

    Attributes:
        call: what was asked. `call.messages` and `call.prompt` are the user's text: mind where it goes.
        request_id: the id that all its requests are sent under.
        started, first_chunk, ended: on the monotonic clock; None until then. `first_chunk`: of a stream.
        attempts: requests sent so far, retries and hedges included.
        endpoint: base URL of the server asked last, or of the one that answered.
        server: what that server is, once it is known.
        answer: the answer; of a stream what it added up to.
        error: what ended the call instead.
        notes: for the hook's own use, such as its span.
    """

    call: Call
    request_id: str
    started: float
    first_chunk: float | None = None
    ended: float | None = None
    attempts: int = 0
    endpoint: str | None = None
    server: ServerInfo | None = None
    answer: Answer | None = None
    error: MyLLMError | None = None
    notes: dict[Any, Any] = field(default_factory=dict)


class Hook:
    """Base of hooks: override what you want to know. Called in the caller's thread or task, so be quick.

    What a hook raises reaches the caller; `ended` is called even so, also where `started` was not.
    """

    def started(self, record: CallRecord) -> None:
        """A call begins."""

    def headers(self, record: CallRecord) -> Mapping[str, str]:
        """Return headers for the call's requests, such as a trace context."""
        return {}

    def sending(self, record: CallRecord, send: Send) -> None:
        """A request is about to be sent, the first one or another try."""

    def failed(self, record: CallRecord, error: MyLLMError) -> None:
        """A try failed; another one may follow."""

    def first_chunk(self, record: CallRecord) -> None:
        """A stream's first chunk came."""

    def ended(self, record: CallRecord) -> None:
        """The call ended, with `record.answer` or `record.error`, or neither when it was cancelled."""


everywhere: tuple[Hook, ...] = ()
"""Hooks of all clients of this process, before each client's own."""


class Watch:
    """Tells the hooks of one call what happens to it; free of cost where there are none."""

    def __init__(
        self, hooks: Sequence[Hook], call: Call, request_id: str, clock: Callable[[], float]
    ) -> None:
        self._hooks = (*everywhere, *hooks)
        self._clock = clock
        self._record = CallRecord(call, request_id, clock()) if self._hooks else None
        self.headers: dict[str, str] = {}

    def begin(self) -> None:
        """The call begins."""
        if self._record is not None:
            for hook in self._hooks:
                hook.started(self._record)
                self.headers.update(hook.headers(self._record))

    def asks(self, server: ServerInfo) -> None:
        """The call is for such a server."""
        if self._record is not None:
            self._record.server = server

    def sends(self, send: Send) -> None:
        """A request is about to be sent."""
        if self._record is not None:
            self._record.attempts += send.request.method != "GET"  # questions about the server are no tries
            self._record.endpoint = send.endpoint.url
            for hook in self._hooks:
                hook.sending(self._record, send)

    def answered(self, endpoint: str) -> None:
        """A server has answered well."""
        if self._record is not None:
            self._record.endpoint = endpoint

    def failed(self, error: MyLLMError) -> None:
        """A try failed."""
        if self._record is not None:
            for hook in self._hooks:
                hook.failed(self._record, error)

    def first_chunk(self) -> None:
        """A stream has begun to tell."""
        if self._record is not None:
            self._record.first_chunk = self._clock()
            for hook in self._hooks:
                hook.first_chunk(self._record)

    def end(self, answer: Answer | None = None, error: BaseException | None = None) -> None:
        """The call ended; only the first time counts."""
        if self._record is not None and self._record.ended is None:
            self._record.ended = self._clock()
            self._record.answer = answer
            self._record.error = error if isinstance(error, MyLLMError) else None
            errors = []
            for hook in self._hooks:
                try:
                    hook.ended(self._record)
                except Exception as exc:  # noqa: BLE001 - raised below: the other hooks must know of the end too
                    errors.append(exc)
            if errors:
                raise errors[0]
