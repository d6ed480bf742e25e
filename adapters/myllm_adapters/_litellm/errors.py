"""The SDK's errors as LiteLLM's exceptions, with the SDK's messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from litellm import exceptions

import myllm


@contextmanager
def litellm_errors(provider: str, model: str) -> Iterator[None]:
    """Raise LiteLLM's exceptions for the SDK's errors, which become their causes."""
    try:
        yield
    except myllm.MyLLMError as exc:
        raise litellm_error(exc, provider, model) from exc


# The first that fits; the class must be LiteLLM's own, or LiteLLM wraps it in one that says less.
_ERRORS: tuple[tuple[type[myllm.MyLLMError], Callable[..., Exception]], ...] = (
    (myllm.UnsupportedFeatureError, exceptions.UnsupportedParamsError),
    (myllm.UnknownParameterError, exceptions.UnsupportedParamsError),
    (myllm.InvalidParameterError, exceptions.BadRequestError),
    (myllm.ContextLengthError, exceptions.ContextWindowExceededError),
    (myllm.BadRequestError, exceptions.BadRequestError),
    (myllm.ValidationError, exceptions.UnprocessableEntityError),
    (myllm.NotFoundError, exceptions.NotFoundError),
    (myllm.ServerStartError, exceptions.NotFoundError),  # an engine here that has no such model
    (myllm.RateLimitError, exceptions.RateLimitError),
    (myllm.OverloadedError, exceptions.ServiceUnavailableError),
    (myllm.ServerError, exceptions.InternalServerError),
    (myllm.MissingExtraError, exceptions.BadRequestError),  # trying again does not install it
)


def litellm_error(error: myllm.MyLLMError, provider: str, model: str) -> Exception:
    """Return LiteLLM's exception for an error, with its message, its status and the pause it asks for."""
    about: dict[str, Any] = {"message": str(error), "model": model, "llm_provider": provider}
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
