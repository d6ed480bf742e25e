"""Word failures as TGI does: `{"error", "error_type"}`."""

from __future__ import annotations

import orjson
from fastapi import Response

from ..errors import Kind, Problem, dialect_route
from ..responses import json_response

# Status and error_type as in TGI's router (router/src/infer/mod.rs, `InferError`).
_STATUS = {
    Kind.INVALID: (422, "validation"),
    Kind.TOO_LARGE: (413, "validation"),
    Kind.UNAUTHORIZED: (401, "unauthorized"),
    Kind.NOT_FOUND: (404, "not_found"),
    Kind.METHOD_NOT_ALLOWED: (405, "method_not_allowed"),
    Kind.OVERLOADED: (429, "overloaded"),
    Kind.TIMEOUT: (504, "timeout"),
    Kind.ENGINE_DEAD: (500, "generation"),
    Kind.INTERNAL: (500, "generation"),
}


def body(problem: Problem) -> dict[str, str]:
    """Return the JSON body of an error."""
    message = problem.message
    if problem.kind in (Kind.INVALID, Kind.TOO_LARGE):
        message = f"Input validation error: {message}"
    elif problem.kind is Kind.OVERLOADED:
        message = "Model is overloaded"
    elif problem.kind in (Kind.ENGINE_DEAD, Kind.INTERNAL):
        message = f"Request failed during generation: {message}"
    return {"error": message, "error_type": _STATUS[problem.kind][1]}


def render(problem: Problem) -> Response:
    """Answer with an error."""
    return json_response(body(problem), _STATUS[problem.kind][0], problem.headers)


def event(problem: Problem) -> bytes:
    """Return the event that tells of an error inside a stream."""
    return b"data:" + orjson.dumps(body(problem)) + b"\n\n"


TGIRoute = dialect_route(render)
