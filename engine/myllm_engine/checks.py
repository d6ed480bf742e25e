"""Check single parameters of requests, and give them one type each. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from .errors import InvalidRequestError

# Logits are float32: within these bounds whatever is computed from them stays finite.
LARGEST = 1e30
# They are looked for after each token, and all running requests wait meanwhile.
_MAX_STOPS = 64
_MAX_STOP_CHARACTERS = 4096
# Tokenised while the request is checked.
_MAX_BAD_WORDS = 1024
_MAX_BAD_CHARACTERS = 65536


def check_int(name: str, value: object, *, low: int, high: int | None = None) -> None:
    """Refuse what is no integer within the bounds."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        limits = f"of {low} or more" if high is None else f"between {low} and {high}"
        raise InvalidRequestError(f"`{name}` must be an integer {limits}; got {value!r}", param=name)


def check_float(name: str, value: object, *, low: float, high: float, open_low: bool = False) -> None:
    """Refuse what is no number within the bounds."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that NaN is refused as well.
    if not number or not low <= value <= high or (open_low and value == low):  # type: ignore[operator]
        limits = f"above {low:g}" if open_low else f"at least {low:g}"
        limits += f" and at most {high:g}"
        raise InvalidRequestError(f"`{name}` must be a number {limits}; got {value!r}", param=name)


def stop_strings(value: object) -> tuple[str, ...]:
    """Return the stop strings of a request; a single one may come by itself."""
    if isinstance(value, str):
        value = (value,)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or not all(isinstance(item, str) and item for item in value):
        raise InvalidRequestError(f"`stop` must hold non-empty strings; got {value!r}", param="stop")
    if len(value) > _MAX_STOPS or sum(map(len, value)) > _MAX_STOP_CHARACTERS:
        raise InvalidRequestError(
            f"`stop` may hold {_MAX_STOPS} strings with {_MAX_STOP_CHARACTERS} characters together; got "
            f"{len(value)} with {sum(map(len, value))}",
            param="stop",
        )
    return tuple(value)


def bad_words(value: object) -> tuple[str, ...]:
    """Return the words that a completion may not hold."""
    if value is None:
        return ()
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(item, str) and item.strip() for item in value)
    ):
        raise InvalidRequestError(
            f"`bad_words` must be a list of strings that are not blank; got {value!r}", param="bad_words"
        )
    if len(value) > _MAX_BAD_WORDS or sum(map(len, value)) > _MAX_BAD_CHARACTERS:
        raise InvalidRequestError(
            f"`bad_words` may hold {_MAX_BAD_WORDS} words with {_MAX_BAD_CHARACTERS} characters together; "
            f"got {len(value)} with {sum(map(len, value))}",
            param="bad_words",
        )
    return tuple(value)


def token_ids(name: str, value: object) -> tuple[int, ...]:
    """Return a list of token ids."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise InvalidRequestError(f"`{name}` must be a list of token ids; got {value!r}", param=name)
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise InvalidRequestError(f"`{name}` must hold token ids of 0 or more; got {item!r}", param=name)
    return tuple(value)


def logit_bias(value: object) -> Mapping[int, float]:
    """Return what is added to logits, by token id."""
    if value is None:
        return MappingProxyType({})
    if not isinstance(value, Mapping):
        raise InvalidRequestError(
            f"`logit_bias` must map token ids to numbers; got {value!r}", param="logit_bias"
        )
    for token_id, bias in value.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            raise InvalidRequestError(
                f"`logit_bias` keys must be token ids of 0 or more; got {token_id!r}", param="logit_bias"
            )
        check_float("logit_bias", bias, low=-LARGEST, high=LARGEST)
    return MappingProxyType(dict(value))
