"""Classify what goes wrong, apart from how a dialect words it.

`diagnose` turns any exception into a `Problem`; a dialect gives `dialect_route` a function that renders a
`Problem` as its own kind of answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from ..errors import EngineDeadError, EngineError, InvalidRequestError, QueueFullError
from .exchange import current
from .fields import ignore_unknown

logger = logging.getLogger(__name__)


class Kind(Enum):
    """Name the kinds of failure that clients must tell apart."""

    INVALID = "invalid"
    TOO_LARGE = "too_large"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    ENGINE_DEAD = "engine_dead"
    GENERATION = "generation"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Problem:
    """Say what went wrong, in words meant for the client.

    Attributes:
        kind: see `Kind`.
        message: one or two sentences.
        param: the request field at fault, as a path such as `messages[0].content`.
        headers: headers that the answer must carry.
    """

    kind: Kind
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


class ProblemError(Exception):
    """Carry a `Problem` from a handler to its dialect's renderer."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ClientDisconnectedError(Exception):
    """The client closed its connection before the answer was ready."""


def invalid(message: str, param: str | None = None) -> ProblemError:
    """Build the error for a request that is wrong in itself."""
    return ProblemError(Problem(Kind.INVALID, message, param))


def diagnose(error: BaseException) -> Problem:
    """Classify an exception. What is not foreseen is logged with its traceback and hidden from the client.

    The current exchange takes note of it.
    """
    problem = _classify(error)
    exchange = current.get()
    if exchange is not None:
        exchange.failure = problem.kind.value
    return problem


def _classify(error: BaseException) -> Problem:
    if isinstance(error, ProblemError):
        return error.problem
    if isinstance(error, RequestValidationError):
        return _from_validation(error)
    if isinstance(error, InvalidRequestError):
        return Problem(Kind.INVALID, str(error), error.param)
    if isinstance(error, QueueFullError):
        return Problem(Kind.OVERLOADED, str(error), headers={"Retry-After": "1"})
    if isinstance(error, EngineDeadError):
        return Problem(Kind.ENGINE_DEAD, f"The engine has stopped and serves no request: {error}")
    if isinstance(error, EngineError):
        return Problem(Kind.GENERATION, str(error))
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, UnicodeEncodeError):
        # Raised by pydantic and orjson; JSON can escape half a surrogate pair, UTF-8 cannot carry it.
        return Problem(Kind.INVALID, "The request holds half of a surrogate pair, which is no character")
    logger.error("request failed unexpectedly", exc_info=error)
    return Problem(Kind.INTERNAL, "The server failed on this request; its log has the details.")


def dialect_route(render: Callable[[Problem], Response]) -> type[APIRoute]:
    """Make a route class whose handlers answer every failure through `render`."""

    class DialectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Any]:
            handle = super().get_route_handler()

            async def handle_or_render(request: Request) -> Response:
                ignore_unknown.set(request.app.state.context.settings.allow_unknown_fields)
                try:
                    response: Response = await handle(request)
                except ClientDisconnectedError:
                    # Nobody reads it; 499 is nginx's code for this, and shows in the access log.
                    return Response(status_code=499)
                except Exception as error:  # noqa: BLE001 - a boundary: every failure becomes an answer
                    return render(diagnose(error))
                return response

            return handle_or_render

    return DialectRoute


def _from_http(error: HTTPException) -> Problem:
    kinds = {
        401: Kind.UNAUTHORIZED,
        404: Kind.NOT_FOUND,
        405: Kind.METHOD_NOT_ALLOWED,
        413: Kind.TOO_LARGE,
    }
    kind = kinds.get(error.status_code)
    if kind is None:
        kind = Kind.INVALID if error.status_code < 500 else Kind.INTERNAL
    detail = str(error.detail)
    if error.status_code == 400 and error.__cause__ is not None:
        # FastAPI's, for what no parser of JSON reads: other bytes than UTF-8, a number without end.
        detail = f"The body is not valid JSON: {error.__cause__}"
    return Problem(kind, detail, headers=dict(error.headers or {}))


def _from_validation(error: RequestValidationError) -> Problem:
    found = [(_param(each, error.body), each) for each in error.errors()[:20]]
    params = [param for param, _ in found if param is not None]
    messages: dict[str, list[str]] = {}
    # A value that fits no member of a union is reported once per member: those that it fits best tell why,
    # and three say enough.
    told = [
        (param, each)
        for param, each in found
        if param is None or not any(other.startswith((f"{param}.", f"{param}[")) for other in params)
    ][:3]
    for param, each in told:
        lead, text = _validation_message(each, param)
        messages.setdefault(lead, []).append(text)
    texts = [lead + ", or ".join(dict.fromkeys(words)) for lead, words in messages.items()]
    return Problem(Kind.INVALID, "; ".join(texts), next((param for param, _ in told if param), None))


def _param(error: Any, body: Any) -> str | None:
    """Return the path of the field at fault, without the members of unions that pydantic puts into it."""
    place, *location = error["loc"]
    if error["type"] == "json_invalid":
        return None
    path = []
    for left, part in enumerate(location, start=1 - len(location)):
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and part in range(len(body))):
            path.append(part)
            body = body[part]
        elif place != "body" or (error["type"] == "missing" and not left):
            path.append(part)
    return field_path(path, (error.get("ctx") or {}).get("field"))


def _validation_message(error: Any, param: str | None) -> tuple[str, str]:
    """Return what a message begins with and how it goes on; what begins alike can be told at once."""
    if "reason" in (error.get("ctx") or {}):
        return "", str(error["ctx"]["reason"])
    if error["type"] == "json_invalid":
        return "", f"The body is not valid JSON: {error['ctx']['error']} at byte {error['loc'][-1]}"
    if param is None:
        if error["type"] == "missing":
            return "", "The request has no body; a JSON object is expected"
        return "", (
            "The body must be a JSON object, sent with the header `Content-Type: application/json` "
            "(curl: -H 'Content-Type: application/json')"
        )
    if error["type"] == "missing":
        return "", f"`{param}` is required"
    return f"`{param}`: ", f"{error['msg'][:1].lower()}{error['msg'][1:]}"


def field_path(location: Sequence[str | int], name: str | None = None) -> str | None:
    """Write a location as a path: `field_path(("messages", 0, "role")) == "messages[0].role"`."""
    path = ""
    for part in [*location, *([name] if name else [])]:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else str(part)
    return path or None
