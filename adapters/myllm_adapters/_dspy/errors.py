"""The SDK's errors as the engine errors of `dspy.lm15`.

DSPy shows those as its own (`dspy.clients.errors`), with status, request id and `retry_after`, and decides by
their class whether to try again: after rate limits, timeouts, 5xx and connection trouble.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dspy import lm15

import myllm
from myllm.base import BaseClient
from myllm.dialects import Dialect

from .state import dialect_of


@contextmanager
def projected(client: BaseClient) -> Iterator[None]:
    """Raise what the SDK raises inside as DSPy's engine error, with the original as its cause."""
    try:
        yield
    except myllm.MyLLMError as exc:
        raise project(exc, dialect_of(client, exc.endpoint)) from exc


def project(exc: myllm.MyLLMError, dialect: Dialect) -> lm15.LM15Error:
    """Return DSPy's engine error for an error of the SDK.

    `dialect` reads the server's words, and is named as the provider.
    """
    context: dict[str, Any] = {
        "provider": dialect.name,
        "status": exc.status,
        "request_id": exc.request_id,
        "retry_after": exc.retry_after,
    }
    if isinstance(exc, myllm.APIStatusError):
        words = dialect.server_words(exc.body)
        context["provider_code"] = words.code or words.type
    if isinstance(exc, myllm.AuthenticationError):
        # The hint stands in for advice that names settings of DSPy's own engines.
        return lm15.AuthError(str(exc), credential_hint=exc.hint, **context)
    return _error_class(exc)(str(exc), **context)


def _error_class(exc: myllm.MyLLMError) -> type[lm15.LM15Error]:
    for source, target in _CLASSES:
        if isinstance(exc, source):
            return target
    if isinstance(exc, myllm.NotFoundError):
        # A missing model and a missing path are the same status; only the words differ.
        about_model = "model" in (exc.server_message or "").lower()
        return lm15.UnsupportedModelError if about_model else lm15.InvalidRequestError
    if isinstance(exc, myllm.APIStatusError):
        return _BY_STATUS.get(exc.status or 0) or (
            lm15.ServerError if (exc.status or 500) >= 500 else lm15.InvalidRequestError
        )
    return lm15.ConfigurationError  # what is left is wrong use on this side, such as a closed client


# In this order: `ConnectTimeoutError` is both a connection error and a timeout.
_CLASSES: tuple[tuple[type[myllm.MyLLMError], type[lm15.LM15Error]], ...] = (
    (myllm.ContextLengthError, lm15.ContextLengthError),
    (myllm.RateLimitError, lm15.RateLimitError),
    (myllm.ConnectError, lm15.TransportError),
    (myllm.IncompleteStreamError, lm15.TransportError),
    (myllm.RequestTimeoutError, lm15.TimeoutError),
    (myllm.UnsupportedFeatureError, lm15.UnsupportedFeatureError),
    (myllm.InvalidParameterError, lm15.InvalidRequestError),
    (myllm.InvalidResponseError, lm15.ProviderError),
)
_BY_STATUS: dict[int, type[lm15.LM15Error]] = {
    402: lm15.BillingError,
    408: lm15.TimeoutError,
    504: lm15.TimeoutError,
}
