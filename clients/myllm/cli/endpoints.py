"""Define the command `myllm endpoints`: which servers are up, and what they serve."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from ..client import Client
from ..endpoints import resolve_endpoints
from ..errors import AuthenticationError, InvalidParameterError, MyLLMError, OverloadedError
from . import _options as options
from ._answers import printed_json
from ._errors import FAILED, REFUSED, UNREACHABLE, guarded, told
from ._options import OUTPUT

_PATIENCE = 10.0  # seconds that a server gets to say what it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One server. `latency_ms`: how long `/health` took, connecting included; `problem`: why it is not up."""

    url: str
    state: str
    kind: str | None = None
    dialect: str | None = None
    models: tuple[str, ...] = ()
    max_model_len: int | None = None
    latency_ms: float | None = None
    problem: str | None = None


def endpoints(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Servers, as in gpu1:8000; --url says the same."),
    ] = None,
    url: options.Urls = None,
    api_key: options.ApiKey = None,
    dialect: options.Dialect = "auto",
    timeout: options.Timeout = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", rich_help_panel=OUTPUT, help="Look again and again, until Ctrl-C."),
    ] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, rich_help_panel=OUTPUT, help="Seconds between two looks of --watch.")
    ] = 2.0,
    as_json: options.Json = False,
) -> None:
    """Show which servers are up, what they are, and which models they serve.

    All are asked at once for their health, models and version; no model is
    made to work (`myllm doctor` does that). --json prints a list of objects;
    with --watch, one such line for each look.

    \b
    Examples:
      myllm endpoints
      myllm endpoints gpu1:8000 gpu2:8000 gpu3:8000 --watch
      myllm endpoints gpu1:8000 --json | jq -r '.[].models[]'

    \b
    Exit codes:
      0  all are up, with models       3    none is up
      1  some are up                   4    all refuse the key
      2  wrong usage                   130  interrupted
    """
    with guarded():
        given = [*(urls or ()), *(url or ())]
        clients = [
            options.make_client(
                [endpoint.url],
                api_key=endpoint.api_key,
                dialect=dialect,
                timeout=_PATIENCE if timeout is None else timeout,
                max_retries=0,
            )
            for endpoint in resolve_endpoints(given or None, api_key)
        ]
        if interval != 2.0 and not watch:
            raise InvalidParameterError("`--interval` is about `--watch`: give that, too.")
        with ThreadPoolExecutor(max_workers=min(32, len(clients))) as pool, _screen(watch, as_json) as show:
            while True:
                rows = list(pool.map(_look, clients))
                show(rows)
                if not watch:
                    raise typer.Exit(_code(rows))
                time.sleep(interval)


def _look(client: Client) -> Row:
    """Ask one server."""
    from ..doctor import get

    url = client._route.endpoints[0].url
    start = time.monotonic()
    try:
        health = get(client, "/health")
        latency = round((time.monotonic() - start) * 1000, 1)
        (info,) = client.server_info().values()
        if isinstance(info, MyLLMError):
            raise info
    except AuthenticationError as exc:
        return Row(url=url, state="no access", latency_ms=latency, problem=told(exc))
    except OverloadedError as exc:
        return Row(url=url, state="not ready", latency_ms=latency, problem=told(exc))
    except MyLLMError as exc:
        return Row(url=url, state="down", problem=told(exc))
    state, problem = "up", None
    if health.status == 503:
        state, problem = "not ready", "`/health` says 503: loading or draining."
    elif not info.models:
        state, problem = "no models", "It lists no model: `myllm doctor` tells more."
    return Row(
        url=url,
        state=state,
        kind=info.product or None,
        dialect=info.dialect,
        models=tuple(model.id for model in info.models),
        max_model_len=info.limits.get("max_model_len"),
        latency_ms=latency,
        problem=problem,
    )


def _code(rows: Sequence[Row]) -> int:
    up = sum(row.state == "up" for row in rows)
    if up:
        return 0 if up == len(rows) else FAILED
    return REFUSED if all(row.state == "no access" for row in rows) else UNREACHABLE


@contextmanager
def _screen(watch: bool, as_json: bool) -> Iterator[Callable[[Sequence[Row]], None]]:
    """Yield what shows the rows: in place when a terminal is watched, else one table after the other."""
    if as_json:
        yield lambda rows: printed_json([asdict(row) for row in rows])
    elif watch and sys.stdout.isatty():
        with Live(console=Console(), auto_refresh=False) as live:
            yield lambda rows: live.update(_table(rows), refresh=True)
    else:
        # A pipe has no width: nothing is cut or wrapped there.
        console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
        yield lambda rows: _print(console, rows)


def _print(console: Console, rows: Sequence[Row]) -> None:
    with console.capture() as captured:
        console.print(_table(rows))
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("URL", "STATE", "KIND", "MODELS", "CONTEXT", "LATENCY"):
        right = column in ("CONTEXT", "LATENCY")
        table.add_column(column, justify="right" if right else "left", no_wrap=column in ("URL", "STATE"))
    troubled = any(row.problem for row in rows)
    if troubled:
        table.add_column("PROBLEM", overflow="fold")
    for row in rows:
        colour = {"up": "green", "down": "red"}.get(row.state, "yellow")
        cells = [
            row.url,
            f"[{colour}]{row.state}[/]",
            row.kind or row.dialect or "",
            ", ".join(row.models),
            "" if row.max_model_len is None else str(row.max_model_len),
            "" if row.latency_ms is None else f"{row.latency_ms:.0f} ms",
            row.problem or "",
        ]
        table.add_row(
            *(cell if i == 1 else cell.replace("[", "\\[") for i, cell in enumerate(cells[: 6 + troubled]))
        )
    return table
