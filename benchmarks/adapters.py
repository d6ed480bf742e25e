"""What a call costs through a framework: our adapters against each framework's own route to the same server.

    python -m benchmarks.adapters [--quick] [--only dspy litellm …] [--save [FOLDER]] [--check]

All in one run, against the stub of `benchmarks.client`, which answers at once. Each route has a process of
its own; those of one framework take turns, in the opposite order every other round, and ratios are medians of
each round's ratio: on a shared machine only they mean anything. A streamed chunk's cost is CPU time, for the
elapsed time is bounded by how fast the stub sends.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._calls import installed, round_trip, stub, worker
from benchmarks._command import RESULTS
from benchmarks._frameworks import FRAMEWORKS, ROUTES
from benchmarks._machine import describe
from benchmarks._process import Ask, Figures, WorkerError
from benchmarks._rounds import Rounds, median_ratio, medians, print_verdicts, save, take_turns, verdict
from benchmarks._tables import table
from benchmarks.stub import CHUNKS, MODEL

Results = dict[str, dict[str, dict[str, Figures]]]
"""By framework, measurement and route."""


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int
    seconds: float


WHOLE, QUICK, TINY = Settings(7, 0.5), Settings(2, 0.2), Settings(1, 0.02)


@dataclass(frozen=True)
class Measurement:
    """Something that is measured of every route which has it.

    Attributes:
        heading: of its column.
        ask: the worker's command, with its arguments but for the time.
        field: the figure that ratios are of; less is better.
        share: of the time a round gets.
        is_sync: whether it calls synchronously.
    """

    heading: str
    ask: dict[str, Any]
    field: str
    share: float
    is_sync: bool


MEASUREMENTS = {
    "sync": Measurement("sync, ms", {"measure": "sequential"}, "ms", 1, True),
    "async": Measurement("async, ms", {"measure": "throughput", "in_flight": 1}, "ms", 1, False),
    "stream_sync": Measurement(
        "chunk, sync, µs", {"measure": "stream", "model": MODEL, "asynchronous": False}, "cpu_us", 0.5, True
    ),
    "stream_async": Measurement(
        "chunk, async, µs", {"measure": "stream", "model": MODEL, "asynchronous": True}, "cpu_us", 0.5, False
    ),
}


def main() -> None:
    """Measure, print tables and verdicts, and save the figures if asked to."""
    arguments = _arguments()
    settings = QUICK if arguments.quick else TINY if arguments.tiny else WHOLE
    console = Console()
    console.width = max(console.width, 110)
    chosen = {name: list(installed(ROUTES, FRAMEWORKS[name], console)) for name in arguments.only}
    packages = sorted({ROUTES[route].package for routes in chosen.values() for route in routes})
    start = time.monotonic()
    with console.status("Starting …") as status, stub() as port, tempfile.TemporaryDirectory() as cache:
        floor = round_trip(port)
        measuring = Measuring(settings, f"http://127.0.0.1:{port}", {"DSPY_CACHEDIR": cache}, status.update)
        try:
            results = {name: measuring.run(routes) for name, routes in chosen.items()}
        except WorkerError as error:
            raise SystemExit(f"{error}; its own words are above.") from None
    verdicts = list(judge(results))
    _print(console, results)
    print_verdicts(console, verdicts)
    console.print(
        f"The stub's own round trip, over a raw socket: {floor:.3f} ms. "
        f"The whole run: {time.monotonic() - start:.0f} s."
    )
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        report = {
            "machine": describe("myllm-suite", *packages),
            "quick": settings is not WHOLE,
            "stub_round_trip_ms": floor,
            "results": results,
            "verdicts": verdicts,
        }
        save(arguments.save / "adapters.json", report)
    if arguments.check and not all(each["met"] for each in verdicts):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a minute in place of some")
    size.add_argument("--tiny", action="store_true", help="shows that it works, and measures nothing")
    parser.add_argument(
        "--only", nargs="+", choices=FRAMEWORKS, default=list(FRAMEWORKS), metavar="FRAMEWORK"
    )
    parser.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help="write adapters.json (to benchmarks/results)",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every target is met")
    return parser.parse_args()


class Measuring:
    """One run: each framework's routes, in interleaved rounds."""

    def __init__(
        self, settings: Settings, url: str, environment: dict[str, str], say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._url = url
        self._environment = environment
        self._say = say

    def run(self, routes: list[str]) -> dict[str, dict[str, Figures]]:
        """Return, for each measurement, the medians of every route, with the ratio of the first to each."""
        with ExitStack() as stack:
            asks = {
                route: stack.enter_context(worker(route, self._url, self._environment)) for route in routes
            }
            return {
                name: summary(self._rounds(name, measurement, asks), measurement.field)
                for name, measurement in MEASUREMENTS.items()
                if any(_has(route, measurement) for route in routes)
            }

    def _rounds(self, name: str, measurement: Measurement, asks: dict[str, Ask]) -> Rounds:
        seconds = self._settings.seconds * measurement.share

        def measure(route: str, _: int) -> Figures:
            figures = asks[route](seconds=seconds, **measurement.ask)
            if "per_second" in figures:  # of calls one after the other
                figures["ms"] = 1e3 / figures.pop("per_second")
            return figures

        able = [route for route in asks if _has(route, measurement)]
        return take_turns(name.replace("_", " "), able, self._settings.rounds, measure, self._say)


def _has(route: str, measurement: Measurement) -> bool:
    peer = ROUTES[route]
    return peer.has_sync if measurement.is_sync else peer.has_async


def summary(rounds: Rounds, field: str) -> dict[str, Figures]:
    """Return everybody's medians; beside the others' figures, as `ours`, ours as a multiple of it."""
    first, *others = rounds[0]
    figures = {name: medians(rounds, name) for name in rounds[0]}
    for name in others:
        figures[name]["ours"] = median_ratio(rounds, first, name, field)
    return figures


TARGETS = (
    ("dspy, lm15", 0.7),
    ("litellm, openai", 1),
    ("litellm, bare provider", 1.15),
    ("autogen, openai", 1),
    ("agentchat, openai", 1),
)
"""What a call through our adapter may cost at most, × the same call over another route."""


def judge(results: Results) -> Iterator[dict[str, Any]]:
    """Yield, for each target that this run can judge, what it is, the figure, and whether it is met."""
    for route, most in TARGETS:
        measured = results.get(route.partition(",")[0], {})
        for how in ("sync", "async"):
            figures = measured.get(how, {}).get(route, {})
            if "ours" in figures:
                yield verdict(f"a call of ours, {how}, × {route}", figures["ours"], most=most)


def _print(console: Console, results: Results) -> None:
    for framework, measured in results.items():
        if not measured:
            continue
        made = table(
            f"{framework}: each route, with ours as a multiple of it (streams of {CHUNKS} chunks, CPU)",
            *(MEASUREMENTS[name].heading for name in measured),
        )
        for route in dict.fromkeys(route for taken in measured.values() for route in taken):
            made.add_row(route, *(_cell(measured[name].get(route), name) for name in measured))
        console.print(made)


def _cell(figures: Figures | None, name: str) -> str:
    if figures is None:
        return "–"
    ours = f" {figures['ours']:5.2f}×" if "ours" in figures else ""
    return f"{figures[MEASUREMENTS[name].field]:.2f}{ours}"


if __name__ == "__main__":
    main()
