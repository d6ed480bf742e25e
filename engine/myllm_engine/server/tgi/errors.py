"""Word failures as TGI does: `{"error", "error_type"}`."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from fastapi import Response

from ..errors import Kind, Problem, ProblemError, dialect_route
from ..responses import json_response

# Status and error_type as in TGI's router (router/src/infer/mod.rs, `InferError`, and router/src/server.rs).
_STATUS = {
    Kind.INVALID: (422, "validation"),
    Kind.TOO_LARGE: (413, "validation"),
    Kind.UNAUTHORIZED: (401, "unauthorized"),
    Kind.NOT_FOUND: (404, "not_found"),
    Kind.METHOD_NOT_ALLOWED: (405, "method_not_allowed"),
    Kind.OVERLOADED: (429, "overloaded"),
    Kind.TIMEOUT: (504, "timeout"),
    Kind.ENGINE_DEAD: (424, "generation"),
    Kind.GENERATION: (424, "generation"),
    Kind.INTERNAL: (500, "internal"),
}
_PREFIX = {
    "generation": "Request failed during generation: ",
    "tool_error": "Tool error: ",
    "validation": "Input validation error: ",
}


@dataclass(frozen=True, slots=True)
class TGIProblem(Problem):
    """Say what went wrong where TGI has a name of its own for it.

    Attributes:
        status: of the answer.
        error_type: TGI's name.
    """

    status: int = 422
    error_type: str = "validation"


def template_error(message: str) -> ProblemError:
    """Build the error for messages that the chat template refuses."""
    text = f"Template error: {message}"
    return ProblemError(TGIProblem(Kind.INVALID, text, "messages", error_type="template_error"))


def incomplete(*, stream: bool) -> ProblemError:
    """Build the error for a text that was broken off."""
    message, error_type = "Incomplete generation", "incomplete_generation"
    if stream:
        message, error_type = f"{message} stream", f"{error_type}_stream"
    return ProblemError(TGIProblem(Kind.INTERNAL, message, status=500, error_type=error_type))


def body(problem: Problem) -> dict[str, str]:
    """Return the JSON body of an error."""
    if isinstance(problem, TGIProblem):
        return {"error": problem.message, "error_type": problem.error_type}
    error_type = _STATUS[problem.kind][1]
    if problem.kind is Kind.OVERLOADED:
        return {"error": "Model is overloaded", "error_type": error_type}
    if problem.kind is Kind.INVALID and (problem.param or "").startswith("tool"):  # `tools`, `tool_choice`
        error_type = "tool_error"
    return {"error": _PREFIX.get(error_type, "") + problem.message, "error_type": error_type}


def render(problem: Problem) -> Response:
    """Answer with an error."""
    status = problem.status if isinstance(problem, TGIProblem) else _STATUS[problem.kind][0]
    return json_response(body(problem), status, problem.headers)


def event(problem: Problem) -> bytes:
    """Return the event that tells of an error inside a stream."""
    return b"data:" + orjson.dumps(body(problem)) + b"\n\n"


TGIRoute = dialect_route(render)
