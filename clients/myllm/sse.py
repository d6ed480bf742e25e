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
        self._tail: list[bytes] = []  # of a line that is not whole yet, which may come in many pieces
        self._data: list[bytes] = []
        self._first = True
        self._after_return = False  # a line feed that comes now belongs to the line end before it

    def feed(self, body: bytes) -> Iterator[bytes]:
        """Yield the data of each event that `body` completes."""
        if self._after_return:
            body, self._after_return = body.removeprefix(b"\n"), not body
        if b"\r" in body:  # lines end with CR, LF or both
            self._after_return = body.endswith(b"\r")
            body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._tail.append(body)
        if b"\n" not in body:
            return
        *lines, rest = b"".join(self._tail).split(b"\n")
        self._tail = [rest] if rest else []
        if self._first:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # the byte order mark is not part of it
            self._first = False
        for line in lines:
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
