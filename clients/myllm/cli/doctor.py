"""Define the command `myllm doctor`: what is this server, what can it do, and what is wrong with it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..doctor import Finding, Report, examination, sources
from ..errors import InvalidParameterError
from . import _options as options
from ._answers import printed_json
from ._errors import FAILED, UNREACHABLE, guarded, in_options

_PATIENCE = 60.0  # seconds for a probe: a server may load its model at the first one
_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red"), "absent": ("–", "dim")}
_PLAIN = {"✓": "+", "✗": "x", "–": "-"}


def doctor(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="[URL]",
            help="The server, as in localhost:8000; --url says the same. Default: MYLLM_BASE_URL, "
            "OPENAI_BASE_URL, http://localhost:8000.",
        ),
    ] = None,
    option: Annotated[
        str | None,
        typer.Option(
            "--url", "-u", "--base-url", metavar="URL", rich_help_panel=options.SERVER, help="The server."
        ),
    ] = None,
    model: options.Model = None,
    api_key: options.ApiKey = None,
    dialect: options.Dialect = "auto",
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", rich_help_panel=options.SERVER, help="Most that a probe may take."),
    ] = _PATIENCE,
    quick: Annotated[
        bool,
        typer.Option("--quick", "-q", help="Connection and identity only: no model is made to work."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Examine a server: what it is, what it can do, what is wrong, and what to do about it.

    Step by step: the settings and where they come from, the connection, the
    kind of server, its models. Then each ability is tried with a request of
    a few tokens, because servers accept much that they do not do. The
    requests are the SDK's: what is told here is what a program will meet.

    \b
      ✓  works                      !  works, with a surprise
      ✗  a problem, and what to do  –  not offered by this server

    \b
    Examples:
      myllm doctor
      myllm doctor https://llm.example.org/v1 --quick
      myllm doctor gpu1:8000 --json | jq '.findings[].summary'

    \b
    Exit codes:
      0  healthy, surprises or not     3    it cannot be reached
      1  problems were found           130  interrupted
      2  wrong usage
    """
    with guarded():
        if url and option:
            raise InvalidParameterError(
                "The server is given twice: as an argument and as `--url`.", param="url"
            )
        url = url or option
        origin = sources(url, api_key)
        client = options.make_client(
            None if url is None else [url],
            model=model,
            api_key=api_key,
            dialect=dialect,
            timeout=timeout,
            max_retries=0,
        )
        findings: list[Finding] = []
        with client:
            show = _Show() if not as_json else None
            for finding in examination(client, quick=quick, origin=origin):
                findings.append(finding)
                if show is not None:
                    show.finding(finding)
            report = Report(url=client._route.endpoints[0].url, findings=tuple(findings))
        if show is None:
            printed_json(report.to_dict())
        else:
            show.verdict(report)
        raise typer.Exit(UNREACHABLE if not report.reachable else 0 if report.healthy else FAILED)


class _Show:
    """Prints findings as they come, in their sections."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._console = Console(width=None if terminal else 1000, highlight=False)
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()
        self._section: str | None = None

    def finding(self, finding: Finding) -> None:
        """Print one."""
        if finding.section != self._section:
            self._print(Text(("\n" if self._section else "") + finding.section, style="bold"))
            self._section = finding.section
        mark, colour = _MARKS[finding.status]
        line = Text.assemble((f"  {self._mark(mark)} ", colour), f"{finding.check:<14} {finding.summary}")
        if finding.seconds is not None:
            line.append(f"  {_clock(finding.seconds)}", style="dim")
        self._print(line)
        if finding.advice is not None:
            self._print(
                Text(f"    {'':<14} → " if self._unicode else f"    {'':<14} > ", style=colour).append(
                    in_options(finding.advice)
                )
            )

    def verdict(self, report: Report) -> None:
        """Print what it comes to."""
        problems, warnings = len(report.problems), len(report.warnings)
        if not report.reachable:
            words, colour = f"{report.url} cannot be reached.", "red"
        elif problems:
            words, colour = f"{_count(problems, 'problem')} found, and {_count(warnings, 'surprise')}.", "red"
        else:
            words, colour = f"Healthy, with {_count(warnings, 'surprise')}.", "green"
        self._print(Text(f"\n{words}", style=colour))

    def _mark(self, mark: str) -> str:
        return mark if self._unicode else _PLAIN.get(mark, mark)

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)
        sys.stdout.flush()


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _clock(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
