"""Header fields: their names are the same in any case (RFC 9110, section 5.1)."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import InvalidParameterError


def checked(headers: Mapping[str, str] | None, param: str) -> dict[str, str]:
    """Return the headers as a new dict.

    Raises:
        InvalidParameterError: a name or value that no HTTP message can carry; the value is not repeated.
    """
    if headers is not None and not isinstance(headers, Mapping):
        raise InvalidParameterError(f"`{param}` must be a mapping of names to values.", param=param)
    result = dict(headers or {})
    for name, value in result.items():
        good = isinstance(name, str) and name.isascii() and name.isprintable() and name and " " not in name
        if not good or not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise InvalidParameterError(
                f"`{param}`: {name!r} is not a header that can be sent: names and values are printable "
                "ASCII text.",
                param=param,
            )
    return result


def merged(*layers: Mapping[str, str]) -> dict[str, str]:
    """Return the layers as one, a later one's field in place of an earlier one's, whatever their case."""
    names: dict[str, str] = {}
    result: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.items():
            result.pop(names.get(name.lower(), name), None)
            names[name.lower()] = name
            result[name] = value
    return result
