"""Turn the bodies of APIs that are built like chat completions into chat requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from fastapi.exceptions import RequestValidationError

from ...errors import InvalidRequestError
from ..errors import Problem, ProblemError, diagnose
from ..fields import parse
from .chat_request import ChatRequest


def chat_request(fields: Mapping[str, Any]) -> ChatRequest:
    """Return the chat request with these fields, as in the body of `POST /v1/chat/completions`.

    Those that are None are left out.

    Raises:
        RequestValidationError: a value that chat requests refuse.
    """
    return parse(ChatRequest, {name: value for name, value in fields.items() if value is not None})


@contextmanager
def told_as(names: Mapping[str, str]) -> Iterator[None]:
    """Tell what is wrong with a chat request in the client's names for its fields.

    Args:
        names: of the client, by those of chat requests and of the engine; others are the same for both.

    Raises:
        ProblemError: in the place of what chat requests and the engine raise for a client's mistake.
    """
    try:
        yield
    except (InvalidRequestError, ProblemError, RequestValidationError) as error:
        raise ProblemError(_renamed(diagnose(error), names)) from error


def _renamed(problem: Problem, names: Mapping[str, str]) -> Problem:
    field = re.split(r"[.\[]", problem.param or "", maxsplit=1)[0]
    if field not in names:
        return problem
    name = names[field]
    return replace(
        problem,
        message=re.sub(rf"`{field}(?=[`.\[])", f"`{name}", problem.message),
        param=name + (problem.param or "").removeprefix(field),
    )
