"""Newline-delimited JSON, decoded without I/O: Ollama's streams.

Format: https://github.com/ndjson/ndjson-spec; content type `application/x-ndjson`.
"""

from __future__ import annotations

from collections.abc import Iterator


class NDJSONDecoder:
    """Turn body bytes, cut anywhere, into lines; the counterpart of `SSEDecoder`."""

    def __init__(self) -> None:
        self._tail: list[bytes] = []  # of a line that is not whole yet, which may come in many pieces

    def feed(self, body: bytes) -> Iterator[bytes]:
        """Yield each line that `body` completes; blank ones are skipped."""
        self._tail.append(body)
        if b"\n" not in body:
            return
        *lines, rest = b"".join(self._tail).split(b"\n")
        self._tail = [rest]
        for line in lines:
            if line := line.strip():
                yield line

    def close(self) -> Iterator[bytes]:
        """Yield the last line when the body ended without a line feed."""
        yield from self.feed(b"\n")
