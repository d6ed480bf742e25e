"""The engine on CPU against its peers, on the bundled model, all in one run.

    python -m benchmarks.engine [--quick] [--only "transformers CB" …] [--save [FOLDER]] [--check]

Each side has a process of its own and the same threads; they take turns, in the opposite order every other
round. Figures are medians over the rounds, and ratios medians of each round's ratio: on a shared machine only
ratios of one run mean anything. Peers with an environment of their own come with
`python -m benchmarks.peers install`; those that are absent are left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks import _command
from benchmarks._process import ROOT
from benchmarks.engine import report
from benchmarks.engine.measuring import QUICK, TINY, Measuring, Settings
from benchmarks.engine.sides import OURS, Running, SideSpec, export_bf16, running, specs


def main() -> None:
    """See `_command.main`."""
    _command.main(
        _command.Comparison(
            doc=__doc__,
            quick_help="five minutes in place of fifteen",
            sizes=(Settings(), QUICK, TINY),
            sides=specs(),
            always=(OURS,),
            run=run,
            show=report.show,
            judge=report.judge,
            file="engine-cpu",
            panels=report.PANELS,
        )
    )


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
