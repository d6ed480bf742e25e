"""The engine on CPU against its peers, on the bundled model, all in one run.

    python -m benchmarks.engine [--quick] [--only "transformers CB" …] [--save [FOLDER]] [--check]

Each side has a process of its own and the same threads; they take turns, in the opposite order every other
round. Figures are medians over the rounds, and ratios medians of each round's ratio: on a shared machine only
ratios of one run mean anything. Peers with an environment of their own come with
`python -m benchmarks.peers install`; those that are absent are left out.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._machine import describe
from benchmarks._plot import draw
from benchmarks._process import ROOT, WorkerError
from benchmarks._rounds import print_verdicts, save
from benchmarks.engine import report
from benchmarks.engine.measuring import QUICK, TINY, Measuring, Settings
from benchmarks.engine.sides import OURS, Running, SideSpec, export_bf16, running, specs

RESULTS = ROOT / "benchmarks" / "results"


def main() -> None:
    """Measure, print tables and verdicts, and save figures and plot if asked to."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # the sides are stopped: nobody else would end them
    sides = specs()
    arguments = _arguments(list(sides))
    settings = QUICK if arguments.quick else TINY if arguments.tiny else Settings()
    console = Console()
    console.width = max(console.width, 110)
    chosen = {}
    for name, spec in sides.items():
        if name not in (OURS, *arguments.only):
            continue
        if spec.executable is None:
            console.print(
                f"{name} is not installed, and left out: python -m benchmarks.peers install {spec.peer}"
            )
        else:
            chosen[name] = spec
    start = time.monotonic()
    with console.status("Starting …") as status:
        try:
            # Where nobody looks a log is left.
            say = status.update if console.is_terminal else partial(console.print, markup=False)
            measured = run(settings, chosen, say, partial(console.print, markup=False))
        except WorkerError as error:
            raise SystemExit(f"{error}; its own words are above.") from None
    verdicts = list(report.judge(measured))
    report.show(console, measured, settings)
    print_verdicts(console, verdicts)
    console.print(f"The whole run: {time.monotonic() - start:.0f} s.")
    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        save(
            arguments.save / "engine-cpu.json",
            {"machine": describe(), "quick": arguments.quick, **measured, "verdicts": verdicts},
        )
        console.print(draw(measured, arguments.save / "engine-cpu.png", report.PANELS))
    if arguments.check and not all(verdict["met"] for verdict in verdicts):
        sys.exit(1)


def _arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="five minutes in place of fifteen")
    size.add_argument(
        "--tiny", action="store_true", help="seconds: shows that it works, and measures nothing"
    )
    parser.add_argument(
        "--only",
        nargs="*",
        choices=names[1:],
        default=names[1:],
        metavar="SIDE",
        help=f"beside myllm; of {', '.join(names[1:])}",
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


def run(
    settings: Settings, chosen: dict[str, SideSpec], say: Callable[[str], None], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Start the sides and measure all there is.

    `say` gets what goes on, `tell` the last words of a side that fails.
    """
    if any("model" in spec.options and spec.weights == "bf16" for spec in chosen.values()):
        say("Exporting the model …")
        export_bf16()
    with ExitStack() as stack:
        sides: dict[str, Running] = {}
        loads = {}
        for name, spec in chosen.items():
            say(f"Loading {name} …")
            sides[name] = stack.enter_context(running(name, spec, tell))
            with sides[name].awake():
                loads[name] = sides[name].ask("load", **spec.options)
        measuring = Measuring(settings, sides, say)
        rounds: dict[str, Any] = {
            "first_token": {length: measuring.first_token(length) for length in settings.lengths},
            "prefix": measuring.prefix(),
            "structured": {n: measuring.structured(n) for n in settings.concurrency},
            "concurrency": {n: measuring.concurrency(n, settings.rounds_at(n)) for n in settings.concurrency},
            "curve": {n: measuring.concurrency(n, 1) for n in settings.curve},
        }
        described = {
            name: {
                "weights": side.spec.weights,
                "versions": loads[name]["versions"],
                "load_seconds": loads[name]["seconds"],
                "peak_mb": side.peak_mb(),
            }
            for name, side in sides.items()
        }
    say("Taking a step apart …")
    return {"sides": described, **report.summary(rounds), "step_ms": _step(settings)}


def _step(settings: Settings) -> dict[str, dict[str, float]]:
    """Return what our decode step spends its milliseconds on, by batch size; see `benchmarks.cpu`.

    Empty where the model runs on torch, which cannot be taken apart: `benchmarks.cpu` says so.
    """
    sizes = [str(size) for size in settings.concurrency]
    context = str(settings.prompt_tokens + settings.new_tokens)
    command = ["-m", "benchmarks.cpu", "--json", "--context", context, "--batch-sizes", *sizes]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    return {} if done.returncode else json.loads(done.stdout)


if __name__ == "__main__":
    main()
