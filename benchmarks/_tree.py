"""A process and its children, looked at from outside: stopped while others are measured, and weighed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil


@dataclass
class Tree:
    """A process with all that it started.

    Attributes:
        process: the root.
        words: the file that it prints to.
    """

    process: psutil.Process
    words: IO[str]

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it and its children run meanwhile, and stop them afterwards: a peer's idle threads may spin."""
        for each in self._all():
            each.resume()
        yield
        for each in self._all():
            each.suspend()

    def peak_mb(self) -> float:
        """Return the largest resident size that it and its children have had, on Linux."""
        return sum(_peak_kb(each.pid) for each in self._all()) * 1024 / 1e6

    def last_words(self) -> str:
        """Return the end of what it printed."""
        self.words.seek(0)
        return "\n".join(self.words.read().splitlines()[-25:])

    def kill_children(self) -> None:
        """End what it started, which would outlive it."""
        for child in self.process.children(recursive=True):
            child.kill()

    def _all(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def _peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
