"""The server against its peers over HTTP, on the bundled model, all in one run.

    python -m benchmarks.server [--quick] [--only vllm …] [--save [FOLDER]] [--check]

So many streams at once ask for completions, each again as soon as it is answered. Each server has a process
of its own and the same threads, and is stopped while the others are measured; they take turns, in the
opposite order every other round. Figures are medians over the rounds, and ratios medians of each round's
ratio: on a shared machine only ratios of one run mean anything. What HTTP costs is seen beside our engine
under the same load in a process without it. vLLM comes with `python -m benchmarks.peers install vllm`, and
is left out while it is absent.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pydoc_data.topics import topics
from typing import Any

from rich.console import Console

from benchmarks import _command
from benchmarks._process import Figures
from benchmarks._rounds import take_turns
from benchmarks.engine.sides import bf16_folder, export_bf16
from benchmarks.server import report
from benchmarks.server.sides import IN_PROCESS, OURS, ServerSpec, Side, driver, running, specs, version


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        prompt_characters, new_tokens: of a request; English has a little over four characters a token.
        streams: requests at once.
        rounds: of each number of streams.
        repeats: requests of each stream; a single one asks twice as often.
        pairs: more rounds of ours with and without HTTP, whose difference is smaller than one round's noise.
    """

    prompt_characters: int = 400
    new_tokens: int = 64
    streams: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    rounds: int = 2
    repeats: int = 2
    pairs: int = 8


QUICK = Settings(new_tokens=32, streams=(1, 8, 32), rounds=1, pairs=4)
TINY = Settings(prompt_characters=60, new_tokens=4, streams=(1, 2), rounds=1, repeats=1)


def main() -> None:
    """See `_command.main`."""
    _command.main(
        _command.Comparison(
            doc=__doc__,
            quick_help="two minutes in place of a quarter of an hour",
            sizes=(Settings(), QUICK, TINY),
            sides=specs(),
            always=(OURS, IN_PROCESS),
            run=run,
            show=_show,
            judge=report.judge,
            file="server-cpu",
            panels=report.PANELS,
        )
    )


def _show(console: Console, measured: dict[str, Any], settings: Settings) -> None:
    request = f"{settings.prompt_characters} characters in, {settings.new_tokens} tokens out"
    report.show(console, measured, request)


def run(
    settings: Settings,
    chosen: dict[str, ServerSpec],
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Start the sides and measure all there is.

    `say` gets what goes on, `tell` the last words of a side that fails.
    """
    if any(str(bf16_folder()) in spec.command for spec in chosen.values()):
        say("Exporting the model …")
        export_bf16()
    with ExitStack() as stack:
        load = stack.enter_context(driver())
        sides: dict[str, Side] = {}
        described: dict[str, dict[str, Any]] = {}
        for name, spec in chosen.items():
            say(f"Starting {name} …")
            start = time.monotonic()
            side = sides[name] = stack.enter_context(running(name, spec, tell))
            seconds = time.monotonic() - start
            load.drive(side, 2, _prompts(settings, 4, "warm"), settings.new_tokens)
            described[name] = {"weights": spec.weights, "start_seconds": seconds, "version": version(spec)}

        def measure(streams: int, name: str, number: int) -> Figures:
            count = streams * settings.repeats * (2 if streams == 1 else 1)
            # Each side has the same prompts, new ones every round: none finds them in its prefix cache.
            prompts = _prompts(settings, count, streams, number)
            return load.drive(sides[name], streams, prompts, settings.new_tokens)

        rounds = {
            streams: take_turns(
                f"{streams} streams", list(sides), settings.rounds, partial(measure, streams), say
            )
            for streams in settings.streams
        }
        pairs = []
        if report.SHARE_AT in rounds:
            pairs = take_turns(
                f"HTTP's share at {report.SHARE_AT} streams",
                [OURS, IN_PROCESS],
                settings.pairs,
                lambda name, number: measure(report.SHARE_AT, name, settings.rounds + number),
                say,
            )
        for name, side in sides.items():
            described[name]["peak_mb"] = side.peak_mb()
    return {"sides": described, **report.summary(rounds, pairs)}


def _prompts(settings: Settings, count: int, *key: object) -> list[str]:
    """Return pieces of English prose that come with Python: the same for the same key."""
    corpus = "\n".join(topics.values())
    length = settings.prompt_characters
    starts = random.Random(repr(key)).sample(range(len(corpus) - length), count)
    return [corpus[start : start + length] for start in starts]


if __name__ == "__main__":
    main()
