"""How far a batch has come, on stderr: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

_EVERY = 10.0  # seconds between two plain lines

Report = Callable[[bool], None]
"""Called once for each result, with whether it failed."""


@contextmanager
def reporting(total: int | None, *, shown: bool, done: int = 0) -> Iterator[Report]:
    """Show progress until the context is left.

    Args:
        total: number of requests, None when nobody knows.
        shown: False shows nothing.
        done: how many of them an earlier run did.
    """
    if not shown:
        yield lambda failed: None
    elif sys.stderr.isatty() and (bar := _bar(total, done)) is not None:
        with bar as report:
            yield report
    else:
        yield _Lines(total, done)


class _Lines:
    """Writes a line every ten seconds, for logs."""

    def __init__(self, total: int | None, done: int) -> None:
        self._total = total
        self._earlier = self._done = done
        self._failed = 0
        self._start = self._last = time.monotonic()

    def __call__(self, failed: bool) -> None:
        self._done += 1
        self._failed += failed
        now = time.monotonic()
        if now - self._last < _EVERY:
            return
        self._last = now
        rate = (self._done - self._earlier) / (now - self._start)
        parts = [f"{self._done}" if self._total is None else f"{self._done} of {self._total}"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(f"{rate:.1f}/s")
        if self._total is not None and rate > 0:
            parts.append(f"{_clock((self._total - self._done) / rate)} left")
        sys.stderr.write(", ".join(parts) + "\n")
        sys.stderr.flush()


def _bar(total: int | None, done: int) -> AbstractContextManager[Report] | None:
    """Return a context manager with rich's bar, or None when rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failures]}", style="red"),
        console=Console(stderr=True),
        transient=True,
    )

    @contextmanager
    def shown() -> Iterator[Report]:
        start = time.monotonic()
        results = failures = 0
        with progress:
            task = progress.add_task("", total=total, completed=done, rate="", failures="")

            def report(failed: bool) -> None:
                nonlocal results, failures
                results += 1
                failures += failed
                rate = results / max(time.monotonic() - start, 1e-9)
                words = f"{failures} failed" if failures else ""
                progress.update(task, advance=1, rate=f"{rate:.1f}/s", failures=words)

            yield report

    return shown()


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}"
