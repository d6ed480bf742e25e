"""The files that a batch is written to: whole lines only, one writer, and able to go on after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import MyLLMError
from .lines import PREFIX


class BatchFileError(MyLLMError):
    """An input or output file is not what a batch can work with; nothing was sent, nothing overwritten."""


class Sink(Protocol):
    """Where output lines go."""

    def append(self, line: dict[str, Any]) -> None:
        """Write one line."""

    def sync(self) -> None:
        """Make what was written survive a power cut."""

    def close(self) -> None:
        """Let go of it."""


class StreamSink:
    """A pipe or a terminal: nothing to go on from."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def append(self, line: dict[str, Any]) -> None:
        """See `Sink.append`."""
        self._stream.write(_encoded(line))
        self._stream.flush()

    def sync(self) -> None:
        """Do nothing: a stream has no disk."""

    def close(self) -> None:
        """Leave the stream to its owner."""


class LineFile:
    """A file of output lines, locked against other writers for as long as it is open."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            BatchFileError: another run writes it.
            OSError: it cannot be opened.
        """
        self.path = path
        self._fd = _locked(path)
        self.size = os.fstat(self._fd).st_size

    def read(self) -> Iterator[tuple[int, int, dict[str, Any]]]:
        """Yield the offset, length and content of each line; cut off a last one that is torn.

        Raises:
            BatchFileError: a line that no batch wrote.
        """
        offset = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                content = _content(line)
                torn = not line.endswith(b"\n")
                if torn and content is None and (line.startswith(PREFIX) or PREFIX.startswith(line)):
                    self._cut(offset)  # the run was killed while it wrote this
                    return
                if content is None:
                    raise BatchFileError(
                        f"Line {number} of {self.path} was not written by a batch, or is damaged.",
                        hint="Delete that line (its request is then made again), write to another file, or "
                        "overwrite this one with --no-resume.",
                    )
                if torn:
                    self.size += os.write(self._fd, b"\n")
                yield offset, len(line) + torn, content
                offset += len(line)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line, or nothing of it.

        Raises:
            OSError: the disk is full, or worse.
        """
        data = _encoded(line)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as exc:
            self._cut(self.size)
            exc.filename = str(self.path)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """See `Sink.sync`."""
        os.fsync(self._fd)

    def clear(self) -> None:
        """Empty it."""
        self._cut(0)

    def rewrite(self, keep: list[tuple[int, int]]) -> None:
        """Replace the file, at once, by these parts (offset, length) of it; remove it when none is left."""
        if not keep:
            self.path.unlink()
            return
        draft = self.path.with_name(self.path.name + ".tmp")
        with draft.open("wb") as file:
            for offset, length in keep:
                file.write(os.pread(self._fd, length, offset))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)

    def close(self) -> None:
        """See `Sink.close`."""
        os.close(self._fd)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._fd, size)
        self.size = size


class ErrorFile:
    """The failed lines: created by the first of them, without those that a later run mended."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Read what an earlier run left; with `resume=False` it will be dropped.

        Raises:
            BatchFileError: another run writes it, or it holds something else.
            OSError: it cannot be opened.
        """
        self.path = path
        self._begun = False
        self._new: list[tuple[int, int]] = []
        self._earlier: dict[str, tuple[int, int]] = {}
        self._file = LineFile(path) if path.exists() else None
        if self._file is not None and resume:
            self._earlier = {line["id"]: (offset, length) for offset, length, line in self._file.read()}

    def __len__(self) -> int:
        return len(self._earlier) + len(self._new)

    def begin(self, ids: set[str]) -> None:
        """Forget failures of requests that are not these: done by now, or no longer asked for."""
        self._begun = True
        self._earlier = {id_: part for id_, part in self._earlier.items() if id_ in ids}

    def __contains__(self, id_: str) -> bool:
        return id_ in self._earlier

    def mended(self, id_: str) -> None:
        """Forget an earlier failure."""
        self._earlier.pop(id_, None)

    def append(self, line: dict[str, Any]) -> None:
        """Write one line, in place of the request's earlier failure."""
        if self._file is None:
            self._file = LineFile(self.path)
        start = self._file.size
        self._file.append(line)
        self._new.append((start, self._file.size - start))
        self.mended(line["id"])

    def sync(self) -> None:
        """See `Sink.sync`."""
        if self._file is not None:
            self._file.sync()

    def close(self) -> None:
        """Leave exactly one line for each request that has failed (once begun), and close the file."""
        if self._file is None:
            return
        keep = [*self._earlier.values(), *self._new]
        try:
            if self._begun and sum(length for _, length in keep) != self._file.size:
                self._file.rewrite(keep)
        finally:
            self._file.close()


def _encoded(line: dict[str, Any]) -> bytes:
    # ASCII, so that no text holds what some readers take for the end of a line (U+2028), or half a character.
    return json.dumps(line).encode() + b"\n"


def _content(line: bytes) -> dict[str, Any] | None:
    """Return what is in a line that a batch wrote, else None."""
    if not line.startswith(PREFIX):
        return None
    try:
        content: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return content if "custom_id" in content else None


def _locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise BatchFileError(
                f"Another run is writing {path}.", hint="Wait for its end, or write to another file."
            ) from None
        os.close(fd)  # it was replaced while we opened it


def is_regular(path: Path) -> bool:
    """Whether a path is a file that can be read again, or none yet: no pipe, no device."""
    return not path.exists() or stat.S_ISREG(path.stat().st_mode)
