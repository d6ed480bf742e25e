"""Write the events of a response, numbered.

Order and fields: https://platform.openai.com/docs/api-reference/responses-streaming and
`openai/types/responses/response_*_event.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson


class Events:
    """Write events one after the other; the first has the number 0."""

    def __init__(self) -> None:
        self._number = -1

    def event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        """Return an event with these fields."""
        return b"".join((self.head(kind, fields), self._tail()))

    @staticmethod
    def head(kind: str, fields: Mapping[str, Any]) -> bytes:
        """Return an event's beginning, to be written once and completed by `delta` for each piece of text."""
        return b"event: %s\ndata: %s" % (kind.encode(), orjson.dumps({"type": kind, **fields})[:-1])

    def delta(self, head: bytes, text: str, rest: bytes = b"") -> bytes:
        """Return the event that begins with `head` and carries `text`."""
        return b"".join((head, b',"delta":', orjson.dumps(text), rest, self._tail()))

    def _tail(self) -> bytes:
        self._number += 1
        return b',"sequence_number":%d}\n\n' % self._number
