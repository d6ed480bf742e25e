"""Write the server's log: one line an event, its data as key=value."""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error", "critical")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class KeyValueFormatter(logging.Formatter):
    """Append what was logged with `extra=` to the message.

    No caller logs prompts or answers: they are the users', and logs travel.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        line = super().format(record)
        extra = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        if not extra:
            return line
        head, newline, traceback = line.partition("\n")
        return f"{head} {extra}{newline}{traceback}"


def configure(level: str) -> None:
    """Send the engine's and uvicorn's log to stderr, from `level` on.

    uvicorn writes its access log at "info".
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(KeyValueFormatter())
    for name in ("myllm_engine", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level.upper())
