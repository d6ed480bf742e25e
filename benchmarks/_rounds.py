"""Rounds in which all take turns, and what is made of them: only ratios of one run count."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._process import Figures

Rounds = list[dict[str, Figures]]
"""Of one measurement: for each round, everybody's figures."""


def take_turns(
    title: str,
    names: Sequence[str],
    count: int,
    measure: Callable[[str, int], Figures],
    say: Callable[[str], None],
) -> Rounds:
    """Measure everybody `count` times, in the opposite order every other round."""
    done = []
    for number in range(count):
        taken = {}
        for name in names[:: -1 if number % 2 else 1]:
            say(f"{title}, round {number + 1} of {count}: {name}")
            taken[name] = measure(name, number)
        done.append(taken)
    return done


def medians(rounds: Rounds, name: str) -> Figures:
    """Return the median over the rounds of each of one's figures."""
    return {field: statistics.median(taken[name][field] for taken in rounds) for field in rounds[0][name]}


def median_ratio(rounds: Rounds, name: str, baseline: str, field: str) -> float:
    """Return the median over the rounds of the ratio of two's figures."""
    return statistics.median(taken[name][field] / taken[baseline][field] for taken in rounds)


def compared(rounds: Rounds, ours: str) -> dict[str, Figures]:
    """Return everybody's medians; beside a peer's figure, as `ahead_<figure>`, how many times better ours is.

    More is better of what is counted per second, and less of everything else.
    """
    table = {}
    for name in rounds[0]:
        figures = medians(rounds, name)
        if name != ours:
            for field in list(figures):
                better = (ours, name) if field.endswith("per_second") else (name, ours)
                figures[f"ahead_{field}"] = median_ratio(rounds, *better, field)
        table[name] = figures
    return table


def verdict(
    target: str, figure: float, *, most: float | None = None, least: float | None = None
) -> dict[str, Any]:
    """Say what was wanted, what came out, and whether that is met."""
    if most is not None:
        return {"target": f"{target}: at most {most:g}", "figure": figure, "met": figure <= most}
    return {"target": f"{target}: at least {least:g}", "figure": figure, "met": figure >= (least or 0)}


def print_verdicts(console: Console, verdicts: Sequence[dict[str, Any]]) -> None:
    """Print one line per target."""
    for each in verdicts:
        word = "[green]met[/]" if each["met"] else "[red]not met[/]"
        console.print(f"{word:>20}  {each['target']}: [bold]{each['figure']:.2f}[/]")


def save(file: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, dated, its numbers rounded to four significant digits: more is noise."""
    dated = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), **report}
    file.write_text(json.dumps(_rounded(dated), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
