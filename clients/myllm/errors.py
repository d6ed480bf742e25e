"""The SDK's exceptions: one tree, each leaf a cause.

`MyLLMError` is the base of everything raised on purpose. Errors that a request met carry the endpoint,
the HTTP status, the request id, the server's own words and, where the cause is known, a `hint` that says
what to do. None of them ever holds an API key.

    MyLLMError
    ├── InvalidParameterError (ValueError)      a parameter has the wrong type, range or company
    │   └── UnknownParameterError               no such parameter; names the nearest one
    ├── UnsupportedFeatureError                 the server's dialect cannot do it; nothing was sent
    ├── ConnectError (ConnectionError)          no connection
    │   ├── ConnectTimeoutError
    │   └── AllEndpointsDown                    none of several servers could be reached; `.errors` says why
    ├── RequestTimeoutError (TimeoutError)      `.phase` says which wait ran out
    │   └── ConnectTimeoutError
    ├── IncompleteStreamError                   the stream broke off; `.partial` holds what had come
    ├── InvalidResponseError                    an answer that is no answer of this API
    │   └── ConstraintNotEnforced               an answer that breaks the constraint it was asked to obey
    ├── APIStatusError                          the server answered with an error
    │   ├── BadRequestError 400 ── ContextLengthError
    │   ├── AuthenticationError 401, 403
    │   ├── NotFoundError 404
    │   ├── ValidationError 422
    │   ├── RateLimitError 429
    │   ├── OverloadedError 503
    │   └── ServerError 5xx
    ├── BatchFileError, ServerUnreachable       a batch file that cannot be used; its server is gone
    ├── ServerStartError                        `myllm.Server`'s process or an engine could not be started
    ├── CassetteMiss                            a cassette replays, and has no answer to this request
    └── MissingExtraError (ImportError)         an optional part of the product is not installed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

TimeoutPhase = Literal["connect", "first_byte", "idle", "write", "pool", "total"]


class MyLLMError(Exception):
    """Base of all errors of the SDK.

    Attributes:
        message: what happened, without the context below.
        endpoint: base URL of the server that was asked, or None.
        status: HTTP status, or None when there was no answer.
        request_id: the id under which the request was sent (header `X-Request-Id`).
        server_message: the server's own words, or None.
        hint: what to do about it, or None.
        retry_after: seconds that the server asked to wait, or None.
        partial: when a stream broke, the answer as far as it had come, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        server_message: str | None = None,
        hint: str | None = None,
        retry_after: float | None = None,
        partial: Any = None,
    ) -> None:
        self.message = message
        self.endpoint = endpoint
        self.status = status
        self.request_id = request_id
        self.server_message = server_message
        self.hint = hint
        self.retry_after = retry_after
        self.partial = partial
        super().__init__(message)

    def __str__(self) -> str:
        parts = [self.message]
        if self.server_message and self.server_message not in self.message:
            parts.append(f"The server says: {self.server_message!r}.")
        if self.hint:
            parts.append(self.hint)
        return " ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions travel between processes (pytest-xdist, joblib, multiprocessing); the default
        # reduction would lose every keyword.
        return _rebuild, (type(self), self.__dict__.copy())


def _rebuild(cls: type[MyLLMError], state: dict[str, Any]) -> MyLLMError:
    error = cls.__new__(cls, state["message"])
    error.__dict__.update(state)
    error.args = (state["message"],)
    return error


class InvalidParameterError(MyLLMError, ValueError):
    """A parameter has a wrong type or value, or contradicts another one. Nothing was sent."""

    def __init__(self, message: str, *, param: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param = param


class UnknownParameterError(InvalidParameterError):
    """No parameter of that name exists. Nothing was sent; `extra_body={...}` sends a field as it is."""


class UnsupportedFeatureError(MyLLMError):
    """The server's dialect has no word for what was asked. Nothing was sent.

    `param` is the parameter that it lacks, where it is one.
    """

    def __init__(self, message: str, *, param: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.param = param


class ConnectError(MyLLMError, ConnectionError):
    """No connection could be made, or it broke before the answer was complete.

    `connected` says which: True if there was a connection, so that the server may have seen the request.
    """

    connected = False


class RequestTimeoutError(MyLLMError, TimeoutError):
    """A wait ran out; `phase` says which.

    "connect"; "first_byte" (no answer began); "idle" (the answer fell silent); "write"; "pool" (no free
    place among the client's own `max_concurrency`); "total" (the deadline of the whole call).
    """

    def __init__(self, message: str, *, phase: TimeoutPhase, **context: Any) -> None:
        super().__init__(message, **context)
        self.phase: TimeoutPhase = phase


class ConnectTimeoutError(ConnectError, RequestTimeoutError):
    """The server's address did not answer within the connect timeout."""

    def __init__(self, message: str, **context: Any) -> None:
        context.setdefault("phase", "connect")
        RequestTimeoutError.__init__(self, message, **context)


class AllEndpointsDown(ConnectError):
    """No server could be reached; `errors` maps each server's URL to what went wrong there."""

    def __init__(self, message: str, *, errors: Mapping[str, MyLLMError], **context: Any) -> None:
        super().__init__(message, **context)
        self.errors = dict(errors)


class IncompleteStreamError(MyLLMError):
    """A stream ended before its last event; `partial` is the answer as far as it came."""


class InvalidResponseError(MyLLMError):
    """The answer is not of this API: not JSON, or JSON of another shape."""


class ConstraintNotEnforced(InvalidResponseError):
    """The server answered 200 with text that breaks the constraint it was sent.

    Some servers read a constraint's field and ignore it (vllm#53975), so every constrained answer is
    checked. `answer` is the whole answer, `index` the choice that broke the constraint, `text` its text.
    """

    def __init__(self, message: str, *, answer: Any, index: int, text: str, **context: Any) -> None:
        super().__init__(message, **context)
        self.answer = answer
        self.index = index
        self.text = text


class APIStatusError(MyLLMError):
    """The server answered with an error status.

    `body` is its answer, parsed when it is JSON; `param` the field it complains of, when it names one.
    """

    def __init__(self, message: str, *, body: Any = None, param: str | None = None, **context: Any) -> None:
        super().__init__(message, **context)
        self.body = body
        self.param = param


class BadRequestError(APIStatusError):
    """400: the server refuses the request as it stands."""


class ContextLengthError(BadRequestError):
    """Prompt and `max_tokens` together do not fit the model's context.

    `prompt_tokens`, `max_tokens` and `limit` are the numbers in the server's words, None where it named none.
    """

    prompt_tokens: int | None = None
    max_tokens: int | None = None
    limit: int | None = None


class AuthenticationError(APIStatusError):
    """401 or 403: the API key is missing, wrong, or not allowed to do this."""


class NotFoundError(APIStatusError):
    """404: no such path, or no such model."""


class ValidationError(APIStatusError):
    """422: the request is well formed, but a value in it is not accepted."""


class RateLimitError(APIStatusError):
    """429: too many requests; `retry_after` in seconds when the server said so."""


class OverloadedError(APIStatusError):
    """503: the server has no room at the moment, or is not ready yet."""


class ServerError(APIStatusError):
    """5xx: the server failed."""


class ServerStartError(MyLLMError):
    """`myllm.Server` could not bring its process up, or an engine in this process could not load its model.

    The message holds the end of the process's log, or the engine's words.
    """


class CassetteMiss(MyLLMError):
    """A cassette replays, and has no answer to this request; the message shows the nearest one it has."""


class MissingExtraError(MyLLMError, ImportError):
    """An optional part of the product is not installed; the message names the extra to install."""


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: AuthenticationError,
    404: NotFoundError,
    422: ValidationError,
    429: RateLimitError,
    503: OverloadedError,
}


def error_class_for_status(status: int) -> type[APIStatusError]:
    """Return the class for an HTTP status; other 5xx are `ServerError`, other 4xx `APIStatusError`."""
    return STATUS_ERRORS.get(status) or (ServerError if status >= 500 else APIStatusError)


def short(value: Any) -> str:
    """Return a value's text, cut for a message."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
