"""Refuse what a request asks for and the server cannot do, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

M = TypeVar("M", bound=BaseModel)

# Whether the request at hand may hold unknown fields, which are then passed over; routes set it.
ignore_unknown: ContextVar[bool] = ContextVar("ignore_unknown", default=False)


class StrictModel(BaseModel):
    """Be the base of request bodies: a field is honoured, refused by name, or documented to have no effect.

    A silent drop is what users of other servers suffer from most: free text where a constraint was asked for.

    Class attributes:
        unsupported: fields that the dialect defines and this server does not honour, with the values besides
            null that ask for nothing special and are therefore accepted.
        reasons: why it does not, and what to do, for those of them that it never will.
        no_effect: fields that are accepted although they change nothing here (an end user's id, for example).
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    reasons: ClassVar[Mapping[str, str]] = {}
    no_effect: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        own = cls._own_names()
        for name, value in data.items():
            if name in own:
                kept[name] = value
            elif name in cls.unsupported:
                if value is not None and not any(
                    value == neutral and type(value) is type(neutral) for neutral in cls.unsupported[name]
                ):
                    reason = cls.reasons.get(name, "is not supported by this server yet")
                    raise refusal(f"`{name}` {reason}", name)
            elif name not in cls.no_effect and not ignore_unknown.get():
                raise refusal(cls._unknown(name), name)
        return kept

    @classmethod
    def _own_names(cls) -> set[str]:
        """Return the fields' names in JSON."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def _unknown(cls, name: str) -> str:
        known = [*cls._own_names(), *cls.unsupported, *cls.no_effect]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        return f"Unknown field {name[:100]!r}{hint}"


def parse(model: type[M], body: Any) -> M:
    """Read a body of JSON that a route took as it came, for the route to choose what it is.

    Raises:
        RequestValidationError: as FastAPI's own, when it reads the body.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        errors = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(errors, body=body) from error


def refusal(reason: str, field: str | None = None) -> PydanticCustomError:
    """Build a validation error with our own words; `field` is the name below the model's place."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "field": field})
