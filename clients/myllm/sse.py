"""Server-sent events, decoded without I/O.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation.
A decoder that works line by line on bytes is the only one that cannot cut a character in two.
"""

from __future__ import annotations

from collections.abc import Iterator


class SSEDecoder:
    """Turn body bytes, cut anywhere, into the `data` of each event.

    Only `data` is kept: no LLM API gives a meaning to `id` or `retry`, and the `event` names that some
    send are repeated inside the data. Comment lines (keep-alives) are skipped.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []

    def feed(self, body: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `body` completes."""
        buffer = self._tail + body
        lines = buffer.split(b"\n")
        self._tail = lines.pop()
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    data, self._data = b"\n".join(self._data), []
                    yield data
            elif line.startswith(b"data:"):
                # One space after the colon belongs to the format; TGI's server leaves it out.
                self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])

    def close(self) -> Iterator[bytes]:
        """Yield the last event when the body ended without its blank line."""
        if self._tail:
            yield from self.feed(b"\n\n")
        elif self._data:
            yield from self.feed(b"\n")
