"""Our errors as those of `openai`, by which AutoGen knows what to pass by and what to raise."""

from __future__ import annotations

from typing import Any

import httpx
import openai

from myllm.errors import (
    APIStatusError,
    ConnectError,
    ConnectTimeoutError,
    IncompleteStreamError,
    InvalidParameterError,
    MyLLMError,
    RequestTimeoutError,
    UnsupportedFeatureError,
)

_BY_STATUS: dict[int, type[openai.APIStatusError]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


class _TimeoutError(openai.APITimeoutError):
    """A timeout that says where and how long; AutoGen knows it by its base class."""

    def __init__(self, message: str, request: httpx.Request) -> None:
        super().__init__(request)
        self.message = message
        self.args = (message,)


def openai_error(error: MyLLMError, request: httpx.Request) -> openai.APIError:
    """Return the error that `openai` would raise, with our words.

    AutoGen goes on to the configuration's next entry after any of them, and after the last entry raises it
    (a timeout as Python's `TimeoutError`).
    """
    if isinstance(error, APIStatusError):
        return _refusal(error, error.status or 500, request)
    if isinstance(error, InvalidParameterError | UnsupportedFeatureError):
        return _refusal(error, 400, request)  # nothing was sent, for it would have been refused
    if isinstance(error, RequestTimeoutError) and not isinstance(error, ConnectTimeoutError):
        return _TimeoutError(str(error), request)
    if isinstance(error, ConnectError | IncompleteStreamError):
        return openai.APIConnectionError(message=str(error), request=request)
    return openai.APIError(str(error), request, body=None)


def _refusal(error: MyLLMError, status: int, request: httpx.Request) -> openai.APIStatusError:
    # AutoGen reads a BadRequestError's response as JSON, whatever the server sent.
    response = httpx.Response(status, json={"error": {"message": str(error)}}, request=request)
    if error.request_id is not None:
        response.headers["x-request-id"] = error.request_id
    cls = openai.InternalServerError if status >= 500 else _BY_STATUS.get(status, openai.APIStatusError)
    return cls(str(error), response=response, body=_details(getattr(error, "body", None)))


def _details(body: Any) -> Any:
    """Return what `openai` keeps of an error's body: the object with `code` and `type`, where it is one."""
    return body.get("error", body) if isinstance(body, dict) else body
