"""Tables of everybody's figures."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from benchmarks._process import Figures


def table(title: str, *columns: str) -> Table:
    """Return a table whose first column has no heading, and the others are numbers."""
    made = Table(title=title, title_justify="left")
    made.add_column("")
    for column in columns:
        made.add_column(column, justify="right")
    return made


def number(value: float) -> str:
    """Return a figure with as many digits as it is worth."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def by_size(title: str, sizes: dict[str, dict[str, Figures]], field: str, sides: dict[str, Any]) -> Table:
    """Return a row a side and a column a size, with how far ahead ours is where that is known."""
    made = table(title, *sizes)
    for name in next(iter(sizes.values())):
        cells = []
        for figures in sizes.values():
            ahead = figures[name].get(f"ahead_{field}")
            cells.append(number(figures[name][field]) + ("" if ahead is None else f" {ahead:5.2f}×"))
        made.add_row(f"{name} ({sides[name]['weights']})", *cells)
    return made
