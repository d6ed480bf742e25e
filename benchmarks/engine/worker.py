"""One engine in a process of its own, which measures it on command.

    python -m benchmarks.engine.worker MODULE:CLASS

The methods of `Worker` are the commands; see `benchmarks._process.obey`. Runs in the peer's environment:
standard library only.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import statistics
import sys
import time
from typing import Any

from benchmarks._process import Figures, obey


class Side:
    """One engine, used as its documentation says; a library is imported when its side is made."""

    packages: tuple[str, ...]
    """The distributions whose versions count."""

    def prepare(self, requests: int, tokens: int) -> None:
        """Get ready, untimed, for so many requests at once of so many tokens each, prompt included."""

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None
    ) -> list[list[float]]:
        """Continue all prompts at once, greedily and past any EOS, by `new_tokens` each.

        Return for each request when each of its tokens was known, by `time.perf_counter`. With a JSON Schema
        the text is constrained by it.
        """
        raise NotImplementedError

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of a text."""
        raise NotImplementedError


class Worker:
    """Measures one side; each method is a command and returns figures."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._side: Side

    def load(self, **options: Any) -> Figures:
        """Import the library, load the model, and run it once, so that nothing is left to be set up."""
        start = time.perf_counter()
        module, _, name = self._kind.partition(":")
        self._side = getattr(importlib.import_module(module), name)(**options)
        seconds = time.perf_counter() - start
        self.generate([[1000 + place] * 40 for place in range(4)], 4)
        versions = {package: importlib.metadata.version(package) for package in self._side.packages}
        return {"seconds": seconds, "versions": versions}

    def tokenize(self, text: str) -> Figures:
        """Return the ids of a text."""
        return {"ids": self._side.tokenize(text)}

    def generate(
        self, prompts: list[list[int]], new_tokens: int, schema: dict[str, Any] | None = None
    ) -> Figures:
        """Run the prompts as concurrent requests that come at once.

        The times to a first token are the median and the largest of the requests'; the time between tokens is
        the median of their means.
        """
        self._side.prepare(len(prompts), max(map(len, prompts)) + new_tokens)
        start = time.perf_counter()
        times = self._side.generate(prompts, new_tokens, schema)
        if [len(each) for each in times] != [new_tokens] * len(prompts):
            raise ValueError(
                f"{self._kind} made {[len(each) for each in times]} tokens, not {new_tokens} each"
            )
        firsts = [(each[0] - start) * 1e3 for each in times]
        figures = {
            "tokens_per_second": len(prompts) * new_tokens / (max(each[-1] for each in times) - start),
            "first_token_ms": statistics.median(firsts),
            "last_first_token_ms": max(firsts),
        }
        if new_tokens > 1:
            gaps = [(each[-1] - each[0]) / (new_tokens - 1) * 1e3 for each in times]
            figures["between_tokens_ms"] = statistics.median(gaps)
        return figures


if __name__ == "__main__":
    obey(lambda: Worker(sys.argv[1]))
