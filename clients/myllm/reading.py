"""Reading of answers: whatever it stumbles over is a bad answer, and says which server gave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .dialects._base import load_json
from .errors import InvalidResponseError, MyLLMError
from .types import ModelInfo
from .wire import Reply


def model_list(reply: Reply, endpoint: str, request_id: str) -> list[ModelInfo]:
    """Read the answer of `GET /v1/models`.

    Raises:
        InvalidResponseError: it is none.
    """
    with located(endpoint, request_id):
        return [ModelInfo.model_validate(entry) for entry in load_json(reply.body)["data"]]


@contextmanager
def located(endpoint: str, request_id: str) -> Iterator[None]:
    """Say where a bad answer came from; whatever its reading stumbles over is a bad answer."""
    try:
        yield
    except MyLLMError as exc:
        located_error(exc, endpoint, request_id)
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise located_error(exc, endpoint, request_id) from exc


def located_error(exc: Exception, endpoint: str, request_id: str) -> MyLLMError:
    """Return what the reading of an answer stumbled over, as an error that says where it came from."""
    if isinstance(exc, MyLLMError):
        exc.endpoint, exc.request_id = endpoint, request_id
        return exc
    if not isinstance(exc, KeyError | TypeError | ValueError | AttributeError):
        raise exc
    words = (str(exc).splitlines() or [""])[0]
    return InvalidResponseError(
        f"The answer is not of this API ({type(exc).__name__}: {words}).",
        endpoint=endpoint,
        request_id=request_id,
        hint="Is `dialect=` right for this server?",
    )
