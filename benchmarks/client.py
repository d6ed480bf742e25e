"""What a call costs beyond the server: our client against bare httpx and aiohttp, and against other SDKs.

    python -m benchmarks.client [--quick] [--only myllm httpx …] [--json FILE] [--check]

All in one run, against a stub in another process that answers at once (`benchmarks/stub.py`). Each client
has a process of its own, and they take turns, in the opposite order every other round; figures are medians
over the rounds, and ratios medians of each round's ratio: on a shared machine only ratios of one run mean
anything.
A streamed chunk's cost is its CPU time, for the elapsed time is bounded by how fast the stub sends; an
import's too, for it waits for nothing but a free core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._calls import OFFLINE, installed, present, round_trip, stub, worker
from benchmarks._machine import describe
from benchmarks._peers import PEERS
from benchmarks._process import Figures, WorkerError, python
from benchmarks._rounds import Rounds, median_ratio, medians, print_verdicts, save, take_turns, verdict
from benchmarks.stub import CHUNKS, COALESCED, MODEL

OURS, BASELINES = "myllm", ("httpx", "openai")
STREAMS = {
    f"stream_{how}_{model}": {"model": model, "asynchronous": how == "async"}
    for how in ("sync", "async")
    for model in (MODEL, COALESCED)
}
_IMPORT = """
import time
start, cpu = time.perf_counter(), time.process_time()
{statement}
figures = {{"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - start}}
import json, psutil
print(json.dumps({{**figures, "rss_mb": psutil.Process().memory_info().rss / 1e6}}))
"""


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 5
    seconds: float = 0.4
    in_flight: tuple[int, ...] = (1, 64, 512)
    memory_calls: int = 5000


QUICK = Settings(rounds=2, seconds=0.1, in_flight=(1, 64), memory_calls=300)


def main() -> None:
    """Measure, print tables and verdicts, and save the figures if asked to."""
    arguments = _arguments()
    settings = QUICK if arguments.quick else Settings()
    console = Console()
    console.width = max(console.width, 110)
    names = list(installed(PEERS, arguments.only, console))
    start = time.monotonic()
    with console.status("Starting …") as status, stub() as port:
        floor = round_trip(port)
        try:
            rounds = Measuring(settings, names, f"http://127.0.0.1:{port}", status.update).run()
        except WorkerError as error:
            raise SystemExit(f"{error}; its own words are above.") from None
    results = {name: summary(name, rounds) for name in names}
    verdicts = list(judge(results))
    _print(console, results, verdicts, settings)
    console.print(
        f"The stub's own round trip, over a raw socket: {floor:.3f} ms. "
        f"The whole run: {time.monotonic() - start:.0f} s."
    )
    if arguments.json:
        report = {
            "machine": describe(*(PEERS[name].package for name in names), *present("uvloop")),
            "quick": arguments.quick,
            "stub_round_trip_ms": floor,
            "results": results,
            "verdicts": verdicts,
        }
        save(arguments.json, report)
    if arguments.check and not all(verdict["met"] for verdict in verdicts):
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half a minute in place of three")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="CLIENT")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every target is met")
    return parser.parse_args()


class Measuring:
    """One run: every measurement, in interleaved rounds."""

    def __init__(self, settings: Settings, names: list[str], url: str, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._names = names
        self._url = url
        self._say = say

    def run(self) -> dict[str, Rounds]:
        """Return, for each measurement, its rounds; a round holds every client's figures."""
        settings = self._settings
        with ExitStack() as stack:
            workers = {name: stack.enter_context(worker(name, self._url)) for name in self._names}

            def asks(measure: str, **arguments: Any) -> Callable[[str], Figures]:
                return lambda name: workers[name](measure, **arguments)

            # Memory comes first: what the other measurements leave would hide what calls add.
            rounds = {
                "memory": self._rounds("memory", asks("memory", calls=settings.memory_calls), rounds=1),
                "import": self._rounds("import time", _import),
                "sequential": self._rounds(
                    "sequential calls", asks("sequential", seconds=settings.seconds), sync=True
                ),
            }
            for in_flight in settings.in_flight:
                rounds[f"in_flight_{in_flight}"] = self._rounds(
                    f"{in_flight} in flight",
                    asks("throughput", in_flight=in_flight, seconds=settings.seconds),
                    rounds=2 if in_flight > 64 else None,  # bare httpx then needs 40 s a round
                )
            for metric, arguments in STREAMS.items():
                rounds[metric] = self._rounds(
                    metric.replace("_", " "),
                    asks("stream", seconds=settings.seconds / 2, **arguments),
                    sync=not arguments["asynchronous"],
                )
        return rounds

    def _rounds(
        self, title: str, measure: Callable[[str], Figures], *, rounds: int | None = None, sync: bool = False
    ) -> Rounds:
        names = [name for name in self._names if PEERS[name].has_sync or not sync]
        count = rounds or self._settings.rounds
        return take_turns(title, names, count, lambda name, _: measure(name), self._say)


def _import(name: str) -> Figures:
    with python("-c", _IMPORT.format(statement=PEERS[name].imports), environment=OFFLINE) as process:
        out, _ = process.communicate()
    return json.loads(out)


def summary(name: str, rounds: dict[str, Rounds]) -> dict[str, dict[str, float]]:
    """Return a client's medians, and for each measurement's first figure its ratio to each baseline."""
    results = {}
    for metric, taken in rounds.items():
        if name not in taken[0]:
            continue
        figures = medians(taken, name)
        field = next(iter(figures))
        for baseline in BASELINES:
            if metric != "memory" and baseline in taken[0]:
                figures[f"vs_{baseline}"] = median_ratio(taken, name, baseline, field)
        results[metric] = figures
    return results


def judge(results: dict[str, dict[str, dict[str, float]]]) -> Iterator[dict[str, Any]]:
    """Yield, for each target that this run can judge, what it is, the figure, and whether it is met."""
    ours = results.get(OURS)
    if ours is None:
        return
    if "httpx" in results:
        yield verdict("a sync call, × bare httpx", ours["sequential"]["vs_httpx"], most=1.3)
        yield verdict("an async call, × bare httpx", 1 / ours["in_flight_1"]["vs_httpx"], most=1.3)
    if "openai" in results:
        yield verdict("calls/s at 64 in flight, × openai", ours["in_flight_64"]["vs_openai"], least=5)
    worst = max(STREAMS, key=lambda metric: ours[metric]["cpu_us"])
    yield verdict("a streamed chunk, µs (the worst of four ways)", ours[worst]["cpu_us"], most=25)
    yield verdict("import, s of CPU", ours["import"]["cpu_seconds"], most=0.3)


def _print(
    console: Console,
    results: dict[str, dict[str, dict[str, float]]],
    verdicts: list[dict[str, Any]],
    settings: Settings,
) -> None:
    ratios = "with the ratios to " + " and ".join(BASELINES)
    loads = [f"in_flight_{n}" for n in settings.in_flight]
    tables: dict[str, list[tuple[str, str, str, str]]] = {
        f"One call after the other, {ratios}": [
            ("sync, ms", "sequential", "ms", ".2f"),
            ("CPU, ms", "sequential", "cpu_ms", ".2f"),
            ("async, CPU ms", "in_flight_1", "cpu_ms", ".2f"),
        ],
        f"Async calls/s at so many in flight, {ratios}": [
            (metric.rpartition("_")[2], metric, "per_second", ",.0f") for metric in loads
        ],
        f"CPU of a streamed chunk, µs (streams of {CHUNKS}), {ratios}": [
            (metric.removeprefix("stream_").replace("_", ", "), metric, "cpu_us", ".1f") for metric in STREAMS
        ],
        "Import and memory": [
            ("import, CPU s", "import", "cpu_seconds", ".2f"),
            ("elapsed, s", "import", "seconds", ".2f"),
            ("RSS after it, MB", "import", "rss_mb", ".0f"),
            (f"growth over {settings.memory_calls:,} calls, MB", "memory", "growth_mb", ".1f"),
        ],
    }
    for title, columns in tables.items():
        table = Table(title=title, title_justify="left")
        table.add_column("client")
        for heading, *_ in columns:
            table.add_column(heading, justify="right")
        for name, measured in results.items():
            table.add_row(name, *(_cell(measured.get(metric), *how) for _, metric, *how in columns))
        console.print(table)
    print_verdicts(console, verdicts)


def _cell(figures: dict[str, float] | None, field: str, form: str) -> str:
    if figures is None:
        return "–"
    text = format(figures[field], form)
    if field == next(iter(figures)):  # the one that the ratios are of
        text += "".join(f" {figures[f'vs_{name}']:5.2f}×" for name in BASELINES if f"vs_{name}" in figures)
    return text


if __name__ == "__main__":
    main()
