"""What the rounds come to: medians, how far ahead ours is, tables, and verdicts on the targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from benchmarks._rounds import compared, median_ratio, medians, verdict
from benchmarks._tables import by_size, number, table
from benchmarks.engine.measuring import OWN_TOKENS, PREFIX_TOKENS, Settings
from benchmarks.engine.sides import OUR_UNCACHED, OURS

LLAMA_CPP = "llama.cpp"
PANELS = (
    ("Tokens/s", "requests at once", ("concurrency", "curve"), "tokens_per_second"),
    ("Time between tokens, ms", "requests at once", ("concurrency", "curve"), "between_tokens_ms"),
    ("Time to the first token, ms", "tokens of the prompt", ("first_token",), "first_token_ms"),
)


def summary(rounds: dict[str, Any]) -> dict[str, Any]:
    """Return all medians; beside a peer's figure, as `ahead_<figure>`, how many times better ours is."""
    prefix = {name: medians(rounds["prefix"], name) for name in rounds["prefix"][0]}
    for name, figures in prefix.items() if OUR_UNCACHED in prefix else ():
        # In each round: what ours without the cache takes for the second prompt, over what this one takes.
        figures["vs_uncached"] = median_ratio(rounds["prefix"], OUR_UNCACHED, name, "next_ms")
    return {
        **{
            metric: {str(size): compared(taken, OURS) for size, taken in rounds[metric].items()}
            for metric in ("concurrency", "curve", "first_token")
        },
        "prefix": prefix,
        "structured": {
            str(size): {
                **{name: medians(taken, name) for name in ("free", "schema")},
                "ratio": median_ratio(taken, "schema", "free", "tokens_per_second"),
            }
            for size, taken in rounds["structured"].items()
        },
    }


def judge(measured: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield, for each target that this run can judge, what it is, the figure, and whether it is met."""
    for size, sides in measured["concurrency"].items():
        peers = {name: figures for name, figures in sides.items() if not name.startswith(OURS)}
        where = f"tokens/s at {size} at once"
        if size == "1" and LLAMA_CPP in peers:
            figures = peers.pop(LLAMA_CPP)
            yield verdict(f"{where}, × {LLAMA_CPP}", figures["ahead_tokens_per_second"], least=1)
            yield verdict(
                f"decoding alone at {size} at once, × {LLAMA_CPP}",
                figures["ahead_between_tokens_ms"],
                least=1,
            )
        if peers:
            best = min(peers, key=lambda name: peers[name]["ahead_tokens_per_second"])
            figure = peers[best]["ahead_tokens_per_second"]
            yield verdict(f"{where}, × {best}, the nearest peer", figure, least=2 if size == "1" else 1)
    if OUR_UNCACHED in measured["prefix"]:
        yield verdict(
            f"time to first token after {PREFIX_TOKENS:,} shared tokens, without the cache / with it",
            measured["prefix"][OURS]["vs_uncached"],
            least=10,
        )
    for size, figures in measured["structured"].items():
        yield verdict(f"structured output at {size} at once, × free text", figures["ratio"], least=0.9)
    if "1" in measured["step_ms"]:
        parts = measured["step_ms"]["1"]
        yield verdict(
            "a step's ms outside matrix products and attention, at 1 at once",
            parts["other"] + parts["Python"],
            most=5,
        )


def show(console: Console, measured: dict[str, Any], settings: Settings) -> None:
    """Print the tables."""
    request = f"{settings.prompt_tokens} tokens in, {settings.new_tokens} out"
    concurrency = {**measured["concurrency"], **measured["curve"]}
    concurrency = {size: concurrency[size] for size in sorted(concurrency, key=int)}
    how = "and how many times better myllm is"
    for title, field in (
        (f"Tokens/s at so many requests at once ({request}), {how}", "tokens_per_second"),
        (f"Time between tokens, ms, {how}", "between_tokens_ms"),
        (f"Time to the first token, ms, median of the requests, {how}", "first_token_ms"),
    ):
        console.print(by_size(title, concurrency, field, measured["sides"]))
    console.print(
        by_size(
            f"Time to the first token of one prompt of so many tokens, ms, {how}",
            measured["first_token"],
            "first_token_ms",
            measured["sides"],
        )
    )
    rows = table(
        f"{PREFIX_TOKENS:,} tokens shared, {OWN_TOKENS} of its own: time to the first token, ms",
        *("first prompt", "next one", "first / next", "myllm uncached / next"),
    )
    for name, figures in measured["prefix"].items():
        rows.add_row(
            name,
            *(number(figures[field]) for field in ("first_ms", "next_ms", "ratio")),
            f"{figures['vs_uncached']:.2f}×" if "vs_uncached" in figures else "–",
        )
    console.print(rows)
    rows = table("Structured output, tokens/s", "free text", "JSON Schema", "ratio")
    for size, figures in measured["structured"].items():
        rows.add_row(
            f"{size} at once",
            *(number(figures[name]["tokens_per_second"]) for name in ("free", "schema")),
            f"{figures['ratio']:.2f}×",
        )
    console.print(rows)
    parts = list(next(iter(measured["step_ms"].values()), {}))
    rows = table("Where our decode step spends its milliseconds", *parts)
    for size, figures in measured["step_ms"].items():
        rows.add_row(f"{size} at once", *(f"{figures[part]:.2f}" for part in parts))
    console.print(rows)
    rows = table("Each side", "weights", "loading, s", "peak memory, MB", "versions")
    for name, side in measured["sides"].items():
        versions = ", ".join(f"{package} {version}" for package, version in side["versions"].items())
        rows.add_row(
            name, side["weights"], f"{side['load_seconds']:.1f}", f"{side['peak_mb']:,.0f}", versions
        )
    console.print(rows)
