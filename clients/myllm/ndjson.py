"""Newline-delimited JSON, decoded without I/O: Ollama's streams.

Format: https://github.com/ndjson/ndjson-spec; content type `application/x-ndjson`.
"""

from __future__ import annotations

from collections.abc import Iterator


class NDJSONDecoder:
    """Turn body bytes, cut anywhere, into lines; the counterpart of `SSEDecoder`."""

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, body: bytes) -> Iterator[bytes]:
        """Yield each line that `body` completes; blank ones are skipped."""
        *lines, self._tail = (self._tail + body).split(b"\n")
        for line in lines:
            if line := line.strip():
                yield line

    def close(self) -> Iterator[bytes]:
        """Yield the last line when the body ended without a line feed."""
        yield from self.feed(b"\n")
