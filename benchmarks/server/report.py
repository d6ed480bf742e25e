"""What the rounds come to: medians, how far ahead ours is, HTTP's share, tables, and verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from benchmarks._rounds import Rounds, compared, median_ratio, verdict
from benchmarks._tables import by_size, table
from benchmarks.server.sides import IN_PROCESS, OURS

SHARE_AT = 32  # streams at which HTTP's share has a target
FIGURES = {
    "requests_per_second": "Requests/s",
    "tokens_per_second": "Tokens/s",
    "first_token_ms": "Time to the first token, ms, median of the requests",
    "between_tokens_ms": "Time between tokens, ms, median of the requests",
}
PANELS = tuple(
    (FIGURES[field].partition(", median")[0], "streams at once", ("streams",), field)
    for field in ("requests_per_second", "first_token_ms", "between_tokens_ms")
)


def summary(rounds: dict[int, Rounds], pairs: Rounds) -> dict[str, Any]:
    """Return all medians, how many times better ours is, and the share of the time that HTTP takes.

    Args:
        rounds: of all sides, by the number of streams.
        pairs: more of ours with and without HTTP, at `SHARE_AT` streams.
    """
    both = {size: [*taken, *(pairs if size == SHARE_AT else ())] for size, taken in rounds.items()}
    return {
        "streams": {str(size): compared(taken, OURS) for size, taken in rounds.items()},
        "http_share": {
            str(size): 1 - median_ratio(taken, OURS, IN_PROCESS, "tokens_per_second")
            for size, taken in both.items()
        },
    }


def judge(measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield, for each target that this run can judge, what it is, the figure, and whether it is met."""
    shares = measured["http_share"]
    if (share := shares.get(str(SHARE_AT))) is not None:
        yield verdict(f"HTTP's share of the time at {SHARE_AT} streams, %", share * 100, most=5)
    for size, sides in measured["streams"].items():
        peers = {name: figures for name, figures in sides.items() if not name.startswith(OURS)}
        for field, title in FIGURES.items():
            if peers and field != "tokens_per_second":
                near = min(peers, key=lambda name: peers[name][f"ahead_{field}"])
                what = f"{title.partition(',')[0].lower()} at {size} streams, × {near}, the nearest peer"
                yield verdict(what, peers[near][f"ahead_{field}"], least=1)


def show(console: Console, measured: dict[str, Any], request: str) -> None:
    """Print the tables; `request` says what each of the requests was."""
    for field, title in FIGURES.items():
        heading = f"{title}, at so many streams ({request}), and how many times better myllm is"
        console.print(by_size(heading, measured["streams"], field, measured["sides"]))
    shares = measured["http_share"]
    rows = table("HTTP's share of the time, at so many streams", *shares)
    rows.add_row("myllm", *(f"{share * 100:.1f} %" for share in shares.values()))
    console.print(rows)
    rows = table("Each side", "weights", "start, s", "peak memory, MB", "version")
    for name, side in measured["sides"].items():
        rows.add_row(
            name, side["weights"], f"{side['start_seconds']:.1f}", f"{side['peak_mb']:,.0f}", side["version"]
        )
    console.print(rows)
