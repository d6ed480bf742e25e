"""The command line of a benchmark in which sides compare themselves in one run."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console

from benchmarks._machine import describe
from benchmarks._plot import Panels, draw
from benchmarks._process import ROOT, WorkerError
from benchmarks._rounds import print_verdicts, save

RESULTS = ROOT / "benchmarks" / "results"

Say = Callable[[str], None]


class Installable(Protocol):
    """What is known of a side before it is started.

    Attributes:
        executable: of its environment; None when it is not installed.
        peer: its name for `python -m benchmarks.peers install`.
    """

    @property
    def executable(self) -> Any: ...

    @property
    def peer(self) -> Any: ...


SpecT = TypeVar("SpecT", bound=Installable)
SettingsT = TypeVar("SettingsT")


@dataclass(frozen=True)
class Comparison(Generic[SettingsT, SpecT]):
    """What makes one benchmark another than the next.

    Attributes:
        doc: what `--help` says of it.
        quick_help: how long `--quick` takes.
        sizes: the settings of a whole run, of `--quick` and of `--tiny`.
        sides: all of them by name.
        always: those that `--only` does not choose.
        run: starts the sides and measures; its callables get what goes on, and the last words of a side
        show: prints the tables.
        judge: returns the verdicts.
        file: name of the figures and of the plot, without an ending.
        panels: of the plot.
    """

    doc: str | None
    quick_help: str
    sizes: tuple[SettingsT, SettingsT, SettingsT]
    sides: Mapping[str, SpecT]
    always: Collection[str]
    run: Callable[[SettingsT, dict[str, SpecT], Say, Say], dict[str, Any]]
    show: Callable[[Console, dict[str, Any], SettingsT], None]
    judge: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]
    file: str
    panels: Panels


def main(comparison: Comparison[SettingsT, SpecT]) -> None:
    """Measure, print tables and verdicts, and save figures and plot if asked to."""
    # The sides are stopped: nobody else would end them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments = _arguments(comparison)
    whole, quick, tiny = comparison.sizes
    settings = quick if arguments.quick else tiny if arguments.tiny else whole
    console = Console()
    console.width = max(console.width, 110)
    chosen = {}
    for name, spec in comparison.sides.items():
        if name not in (*comparison.always, *arguments.only):
            continue
        if spec.executable is None:
            console.print(
                f"{name} is not installed, and left out: python -m benchmarks.peers install {spec.peer}"
            )
        else:
            chosen[name] = spec
    start = time.monotonic()
    tell = partial(console.print, markup=False)
    with console.status("Starting …") as status:
        try:
            # Where nobody looks a log is left.
            say = status.update if console.is_terminal else tell
            measured = comparison.run(settings, chosen, say, tell)
        except WorkerError as error:
            raise SystemExit(f"{error}; its own words are above.") from None
    verdicts = list(comparison.judge(measured))
    comparison.show(console, measured, settings)
    print_verdicts(console, verdicts)
    console.print(f"The whole run: {time.monotonic() - start:.0f} s.")
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        save(
            arguments.save / f"{comparison.file}.json",
            {"machine": describe(), "quick": arguments.quick, **measured, "verdicts": verdicts},
        )
        console.print(draw(measured, arguments.save / f"{comparison.file}.png", comparison.panels))
    if arguments.check and not all(verdict["met"] for verdict in verdicts):
        sys.exit(1)


def _arguments(comparison: Comparison[SettingsT, SpecT]) -> argparse.Namespace:
    names = [name for name in comparison.sides if name not in comparison.always]
    parser = argparse.ArgumentParser(
        description=comparison.doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=comparison.quick_help)
    size.add_argument(
        "--tiny", action="store_true", help="seconds: shows that it works, and measures nothing"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=names,
        default=names,
        metavar="SIDE",
        help=f"beside myllm; of {', '.join(names)}",
    )
    parser.add_argument(
        "--save",
        type=Path,
        nargs="?",
        const=RESULTS,
        metavar="FOLDER",
        help="write the figures and the plot (to benchmarks/results)",
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 unless every target is met")
    return parser.parse_args()
