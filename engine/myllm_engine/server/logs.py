"""Write the server's log: one line an event, as text with key=value, or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from .exchange import current

LEVELS = ("debug", "info", "warning", "error", "critical")
FORMATS = ("text", "json")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_PLAIN = re.compile(r"[^\s\"\\\x00-\x1f]+")


class ExchangeFilter(logging.Filter):
    """Give each line that is written for an HTTP request that request's id, as `x_request_id`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the id; every record passes."""
        exchange = current.get()
        if exchange is not None:
            record.x_request_id = exchange.request_id
        return True


class KeyValueFormatter(logging.Formatter):
    """Append what was logged with `extra=` to the message.

    Prompts and answers are the users', and logs travel: only `request_log` logs any, and only when asked to.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        line = super().format(record)
        extra = " ".join(f"{key}={_word(value)}" for key, value in _extra(record).items())
        if not extra:
            return line
        head, newline, traceback = line.partition("\n")
        return f"{head} {extra}{newline}{traceback}"


class JsonFormatter(logging.Formatter):
    """Write a JSON object: `time` (ISO 8601, UTC), `level`, `logger`, `message`, and what `extra=` holds.

    A failure's traceback is under `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure(
    level: str,
    *,
    format: str = "text",
    uvicorn_level: str | None = None,
    log_requests: bool = False,
) -> None:
    """Send the engine's and uvicorn's log to stderr.

    Args:
        level: from which on, one of `LEVELS`.
        format: one of `FORMATS`.
        uvicorn_level: the same for uvicorn, which writes its access log at "info"; None: `level`.
        log_requests: whether what `request_log` writes passes, whatever the level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else KeyValueFormatter())
    handler.addFilter(ExchangeFilter())
    for name, its_level in (("myllm_engine", level), ("uvicorn", uvicorn_level or level)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(its_level.upper())
    if log_requests:
        logging.getLogger("myllm_engine.server.request_log").setLevel(logging.INFO)


def tell(text: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Write to stderr what an operator must know, whatever the log's level.

    Args:
        text: lines for people; of a JSON log, the first one is the message.
        level: for a JSON log.
        facts: the same for programs; only a JSON log has them.
    """
    handlers = logging.getLogger("myllm_engine").handlers
    if not any(isinstance(handler.formatter, JsonFormatter) for handler in handlers):
        sys.stderr.write(text.rstrip("\n") + "\n")
        sys.stderr.flush()
        return
    message = text.partition("\n")[0]
    record = logging.getLogger("myllm_engine.server").makeRecord(
        "myllm_engine.server", level, "", 0, message, (), None, extra=facts
    )
    for handler in handlers:
        handler.handle(record)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _word(value: Any) -> str:
    """Return a value as one word: quoted as in JSON where it has blanks or the like."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
