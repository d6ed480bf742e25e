"""Word failures as OpenAI's API does: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import orjson
from fastapi import Response

from ..errors import Kind, Problem, dialect_route
from ..responses import json_response

# Status and type as vLLM has them (vllm/entrypoints/openai/protocol.py, `ErrorInfo`); `code` repeats the
# status there, where OpenAI has a word or null.
_STATUS = {
    Kind.INVALID: (400, "BadRequestError"),
    Kind.TOO_LARGE: (413, "RequestEntityTooLargeError"),
    Kind.UNAUTHORIZED: (401, "AuthenticationError"),
    Kind.NOT_FOUND: (404, "NotFoundError"),
    Kind.METHOD_NOT_ALLOWED: (405, "MethodNotAllowedError"),
    Kind.OVERLOADED: (503, "ServiceUnavailableError"),
    Kind.TIMEOUT: (504, "TimeoutError"),
    Kind.ENGINE_DEAD: (500, "InternalServerError"),
    Kind.GENERATION: (500, "InternalServerError"),
    Kind.INTERNAL: (500, "InternalServerError"),
}


def body(problem: Problem) -> dict[str, object]:
    """Return the JSON body of an error."""
    status, name = _STATUS[problem.kind]
    return {
        "error": {"message": problem.message, "type": name, "param": problem.param, "code": status},
    }


def render(problem: Problem) -> Response:
    """Answer with an error."""
    return json_response(body(problem), _STATUS[problem.kind][0], problem.headers)


def event(problem: Problem) -> bytes:
    """Return the event that tells of an error inside a stream; `data: [DONE]` follows it."""
    return b"data: " + orjson.dumps(body(problem)) + b"\n\n"


OpenAIRoute = dialect_route(render)
