"""How a command ends: what is said of an error, and the exit code. Decided here, for all commands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from ..errors import (
    AuthenticationError,
    ConnectError,
    InvalidParameterError,
    MyLLMError,
    UnknownParameterError,
    UnsupportedFeatureError,
)

FAILED, USAGE, UNREACHABLE, REFUSED, UNWRITABLE, INTERRUPTED, BROKEN_PIPE = 1, 2, 3, 4, 5, 130, 141
EXIT_CODES = """

\b
Exit codes:
  0  answered                        3    no server could be reached
  1  the server failed or refused    4    key missing, wrong or not allowed
  2  wrong usage or parameters       130  interrupted
"""
"""For the end of a command's help."""

# The SDK's hints speak of arguments; whoever typed a command wants options.
_WORDS = (
    (r"`client\.models\(\)`", "`myllm endpoints`"),
    (r"`client\.server_info\(\)`", "`myllm doctor`"),
    (r"""completions \(`model_type="text"`, `client\.complete`\)""", "`myllm complete`"),
    (r"`timeout=Timeout\(\w+=…\)`", "`--timeout`"),
    (r"`verify=` takes a CA bundle", "`SSL_CERT_FILE` names a CA bundle"),
    (r", or raise `max_retries`", ""),
    (r"`port` and `url`|`url`, `port`", "`--url`"),
    (r"`(model|dialect|api_key|max_tokens|url)=?(?=`)", lambda m: "`--" + m[1].replace("_", "-")),
    (r"`dialect=`", "`--dialect`"),
)


def exit_code(error: MyLLMError) -> int:
    """Return the exit code for an error."""
    if isinstance(error, InvalidParameterError | UnsupportedFeatureError):
        return USAGE
    if isinstance(error, ConnectError) and not error.connected:
        return UNREACHABLE
    return REFUSED if isinstance(error, AuthenticationError) else FAILED


def in_options(words: str) -> str:
    """Return the SDK's advice in the words of the command line."""
    for pattern, replacement in _WORDS:
        words = re.sub(pattern, replacement, words)
    return words


def told(error: MyLLMError) -> str:
    """Return an error as the command line says it."""
    hint = error.hint
    if isinstance(error, UnknownParameterError) and "extra_body" in (hint or ""):
        hint = f"`--extra {error.param}=…` sends a field as it is."
    words = error.message
    if error.server_message and error.server_message not in words:
        words += f" The server says: {error.server_message!r}."
    return f"{words} {in_options(hint)}" if hint else words


def say(words: str) -> None:
    """Tell the person, on stderr: stdout is for answers."""
    sys.stderr.write(words + "\n")
    sys.stderr.flush()


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what goes wrong in a command into a line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # an answer may hold what the terminal's encoding lacks
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone, as in `myllm … | head`. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(BROKEN_PIPE) from None
    except MyLLMError as exc:
        say(f"myllm: {told(exc)}")
        raise typer.Exit(exit_code(exc)) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
