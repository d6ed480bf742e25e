"""Bound the constraints of a request, whatever spelling they came in, before they are compiled."""

from __future__ import annotations

import json

from ..request import Structured
from .errors import ProblemError, invalid

# Nothing can stop the compiler once it runs, so what it is given is bounded: these take it seconds at most
# (GBNF's converter is quadratic in the number of rules), and hold far more than people write.
MAX_CHARACTERS = {
    "json_schema": 256 * 1024,
    "regex": 256 * 1024,
    "choice": 256 * 1024,
    "grammar": 64 * 1024,
}
MAX_CHOICES = 2000


def bounded(constraint: Structured) -> Structured:
    """Return `constraint`.

    Raises:
        ProblemError: it is too large to be compiled.
    """
    limit = MAX_CHARACTERS[constraint.kind]
    if len(constraint.value) > limit:
        raise _too_large(constraint, f"{len(constraint.value)} characters", limit)
    if constraint.kind == "choice" and (choices := len(json.loads(constraint.value))) > MAX_CHOICES:
        raise _too_large(constraint, f"{choices} texts", MAX_CHOICES)
    return constraint


def _too_large(constraint: Structured, size: str, limit: int) -> ProblemError:
    kind = constraint.kind.replace("_", " ")
    return invalid(
        f"The {kind} is too large: it has {size}, and this server compiles {limit} at most", constraint.param
    )
