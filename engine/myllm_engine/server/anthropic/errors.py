"""Word failures as Anthropic's API does: `{"type": "error", "error": {"type", "message"}}`."""

from __future__ import annotations

import orjson
from fastapi import Response

from ..errors import Kind, Problem, dialect_route
from ..responses import json_response

# Status and type as in https://docs.anthropic.com/en/api/errors.
_STATUS = {
    Kind.INVALID: (400, "invalid_request_error"),
    Kind.TOO_LARGE: (413, "request_too_large"),
    Kind.UNAUTHORIZED: (401, "authentication_error"),
    Kind.NOT_FOUND: (404, "not_found_error"),
    Kind.METHOD_NOT_ALLOWED: (405, "invalid_request_error"),
    Kind.OVERLOADED: (529, "overloaded_error"),
    Kind.TIMEOUT: (504, "timeout_error"),
    Kind.ENGINE_DEAD: (500, "api_error"),
    Kind.GENERATION: (500, "api_error"),
    Kind.INTERNAL: (500, "api_error"),
}


def body(problem: Problem) -> dict[str, object]:
    """Return the JSON body of an error; the message names the field at fault, for which there is no place."""
    message = problem.message
    if problem.param is not None and problem.param not in message:
        message = f"{problem.param}: {message}"
    error: dict[str, object] = {"type": _STATUS[problem.kind][1], "message": message}
    if problem.param == "thread":
        # At this the SDK's runner of tools goes on without (anthropic/lib/threads/_thread_state.py).
        error["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": error}


def render(problem: Problem) -> Response:
    """Answer with an error."""
    return json_response(body(problem), _STATUS[problem.kind][0], problem.headers)


def event(problem: Problem) -> bytes:
    """Return the event that tells of an error inside a stream, and ends it."""
    return b"event: error\ndata: " + orjson.dumps(body(problem)) + b"\n\n"


AnthropicRoute = dialect_route(render)
