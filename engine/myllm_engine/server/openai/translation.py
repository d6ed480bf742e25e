"""Turn the bodies of APIs that are built like chat completions into chat requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from .chat_request import ChatRequest


def chat_request(fields: Mapping[str, Any], names: Mapping[str, str]) -> ChatRequest:
    """Return the chat request with these fields; those that are None are left out.

    Args:
        fields: as in the body of `POST /v1/chat/completions`.
        names: what the client calls a field, where that is not the field's own name.

    Raises:
        RequestValidationError: a value that chat requests refuse, told under the client's name.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return ChatRequest.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError([_renamed(dict(item), names) for item in error.errors()]) from None


def _renamed(error: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    context = dict(error.get("ctx") or {})
    location = [str(part) if isinstance(part, str) else part for part in error["loc"]]
    if location:
        location[0] = names.get(str(location[0]), location[0])
    elif context.get("field"):
        context["field"] = names.get(context["field"], context["field"])
    return {**error, "loc": ("body", *location), "ctx": context}
