"""Reading of answers: whatever it stumbles over is a bad answer, and says which server gave it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .dialects._base import load_json
from .errors import InvalidResponseError, MyLLMError
from .redaction import redacted
from .types import ModelInfo
from .wire import Reply


def model_list(reply: Reply, endpoint: str, request_id: str, secrets: Sequence[str] = ()) -> list[ModelInfo]:
    """Read the answer of `GET /v1/models`.

    Raises:
        InvalidResponseError: it is none.
    """
    with located(endpoint, request_id, secrets):
        return [ModelInfo.model_validate(entry) for entry in load_json(reply.body)["data"]]


@contextmanager
def located(endpoint: str, request_id: str, secrets: Sequence[str] = ()) -> Iterator[None]:
    """Say where a bad answer came from; whatever its reading stumbles over is a bad answer.

    `secrets` are blotted out of what it quotes.
    """
    try:
        yield
    except MyLLMError as exc:
        located_error(exc, endpoint, request_id, secrets)
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise located_error(exc, endpoint, request_id, secrets) from exc


def located_error(exc: Exception, endpoint: str, request_id: str, secrets: Sequence[str] = ()) -> MyLLMError:
    """Return what the reading of an answer stumbled over, as an error that says where it came from."""
    if not isinstance(exc, MyLLMError):
        if not isinstance(exc, KeyError | TypeError | ValueError | AttributeError):
            raise exc
        words = (str(exc).splitlines() or [""])[0]
        exc = InvalidResponseError(
            f"The answer is not of this API ({type(exc).__name__}: {words}).",
            hint="Is `dialect=` right for this server?",
        )
    exc.endpoint, exc.request_id = endpoint, request_id
    return redacted(exc, secrets)
