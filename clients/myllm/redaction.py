"""Secrets: what they are in a request, and how they are kept out of errors (and, by `tape.py`, of files).

Some servers repeat what they were sent: "Incorrect API key: …". What is quoted of an answer is therefore
parsed first, and only the texts in it are gone through: an escape cannot hide a secret then, and a key that
is also JSON ("1", "null") or the name of a field ("message") breaks nothing.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from .errors import MyLLMError

if TYPE_CHECKING:
    from .transport.options import HTTPOptions

ErrorT = TypeVar("ErrorT", bound=MyLLMError)

SECRET_HEADER = re.compile(r"auth|cookie|key|token(?!s)|secret|password|credential", re.IGNORECASE)
"""Names of headers whose values nobody else may see."""

# What is a secret by its looks: credentials in a header's value or a URL, keys of well-known services.
_LOOKS_SECRET = re.compile(
    r"(?<=\bBearer )(?=\S*\d)[\w.~+/=-]{8,}|(?<=\bBasic )(?=\S*[A-Z\d])[A-Za-z0-9+/=]{8,}|(?<=://)[^/\s:@\"']*:[^/\s@\"']+(?=@)"
    r"|\bsk-[\w-]{16,}|\bhf_\w{16,}"
)
_SHORT = 8
"""Characters below which a secret ("k") may be part of any word, so that only whole words are it."""
_HEAD = 6
"""Characters by which a secret that was cut is known."""


def secrets_of(
    headers: Mapping[str, str], keys: Iterable[str | None] = (), http: HTTPOptions | None = None
) -> tuple[str, ...]:
    """Return what a request carries that nobody else may see.

    Args:
        headers: all that are sent.
        keys: the servers' keys; None and "" are none.
        http: for the passwords of basic authentication and of a proxy.
    """
    found = [key for key in keys if key]
    if http is not None and http.auth is not None:
        found += [":".join(http.auth), http.auth[1]]
        found.append(base64.b64encode(found[-2].encode()).decode())
    if http is not None and http.proxy is not None and (password := urlsplit(http.proxy).password):
        found += [password, unquote(password)]
    for name, value in headers.items():
        if SECRET_HEADER.search(name):
            found += _in_header(value)
    return tuple(dict.fromkeys(filter(None, found)))


def _in_header(value: str) -> Iterator[str]:
    yield value
    scheme, _, credentials = value.partition(" ")
    yield credentials
    if scheme.lower() == "basic":
        try:
            login = base64.b64decode(credentials).decode()
        except (binascii.Error, UnicodeDecodeError):
            return
        yield login
        yield login.partition(":")[2]


def scrubbed(value: Any, secrets: Iterable[str] = ()) -> Any:
    """Return a text, or the texts in a JSON value, without these secrets and what looks like one.

    Names of fields stay.
    """
    if isinstance(value, str):
        return _LOOKS_SECRET.sub("…", _spellings(tuple(secrets)).sub("…", value))
    if isinstance(value, Mapping):
        return {name: scrubbed(inner, secrets) for name, inner in value.items()}
    if isinstance(value, list):
        return [scrubbed(inner, secrets) for inner in value]
    return value


def redacted(error: ErrorT, secrets: Iterable[str] = ()) -> ErrorT:
    """Return the error, with no secret left in anything that it says."""
    secrets = tuple(secrets)
    for name in ("message", "endpoint", "server_message", "param", "body", "hint"):
        if (said := getattr(error, name, None)) is not None:
            setattr(error, name, scrubbed(said, secrets))
    error.args = (error.message,)
    return error


@lru_cache(maxsize=64)
def _spellings(secrets: tuple[str, ...]) -> re.Pattern[str]:
    """Return a pattern of the secrets as they may stand in text that is no JSON, or cut off from it."""
    longest_first = sorted(set(secrets), key=len, reverse=True)
    words = [
        spelled(secret) if len(secret) >= _SHORT else rf"(?<!\w){spelled(secret)}(?!\w)"
        for secret in longest_first
    ]
    # What is quoted is cut at a length, perhaps in the middle of one.
    words += [spelled(secret[:_HEAD]) + r"\S*(?=…)" for secret in longest_first if len(secret) >= _SHORT]
    return re.compile("|".join(words) or r"(?!)")


def spelled(text: str) -> str:
    """Return the pattern of a text, with each character as it is, or as JSON, Python or a URL escapes it."""
    return "".join(map(_character, text))


def _character(one: str) -> str:
    if one.isascii() and one.isalnum():
        return one
    return rf"(?:\\*{re.escape(one)}|\\+u(?i:{ord(one):04x})|{re.escape(quote(one, safe=''))})"
