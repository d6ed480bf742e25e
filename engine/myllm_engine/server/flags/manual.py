"""Write the help of `myllm serve`.

typer draws a table, whose columns cut the names of options at the width of usual terminals.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import typer
from typer.models import ArgumentInfo, OptionInfo

from .option import PREFIX, options

_WIDEST = 100
_TYPES = {int: "N", float: "NUMBER", str: "TEXT"}


def show(ctx: typer.Context, wanted: bool) -> None:
    """Print the manual of a command and exit; typer's callback of `--help`."""
    if wanted:
        width = min(_WIDEST, shutil.get_terminal_size().columns)
        typer.echo(manual(ctx.command.callback.groups, ctx.command.help, ctx.command_path, width))
        raise typer.Exit


def manual(groups: Sequence[type], description: str, program: str, width: int) -> str:
    """Return the manual: how the command is called, what it does, and each group of options."""
    parts = [f"Usage: {program} [MODEL] [OPTIONS]\n\n{inspect.cleandoc(description)}\n"]
    for group in groups:
        entries = [
            entry(name, kind, info, default, width)
            for name, kind, info, default in options(group)
            if not info.hidden
        ]
        if entries:
            parts.append("\n".join([typer.style(group.title, bold=True), *entries]) + "\n")
    return "\n".join(parts)


def entry(name: str, kind: Any, info: OptionInfo | ArgumentInfo, default: Any, width: int) -> str:
    """Return the lines about one option."""
    remarks = [f"default: {value}"] if (value := shown_default(info, default)) else []
    if foreign := [variable for variable in info.envvar or () if not variable.startswith(PREFIX)]:
        remarks.append(f"also {', '.join(foreign)}")
    text = info.help + (f" [{'; '.join(remarks)}]" if remarks else "")
    # Paths, URLs and JSON are not broken at their dashes.
    lines = textwrap.wrap(text, width - 8, break_on_hyphens=False, break_long_words=False)
    return "\n".join([f"  {spelling(name, kind, info)}", *(f"        {line}" for line in lines)])


def shown_default(info: OptionInfo | ArgumentInfo, default: Any) -> str:
    """Return what stands for an option's default; "" where there is nothing to tell."""
    if default is True:
        return "on"
    if default is False:
        return ""
    if default is None:
        return info.show_default if isinstance(info.show_default, str) else ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def spelling(name: str, kind: Any, info: OptionInfo | ArgumentInfo) -> str:
    """Return the ways to write an option, as `-p, --port N`."""
    if isinstance(info, ArgumentInfo):
        return name.upper()
    names = [info.default, *(info.param_decls or ())] if isinstance(info.default, str) else []
    if kind is bool and not names:
        return f"--[no-]{name.replace('_', '-')}"
    names = sorted(names or [f"--{name.replace('_', '-')}"], key=lambda item: item.startswith("--"))
    if kind is bool:
        return ", ".join(names)
    inner = next((item for item in get_args(kind) if item is not type(None)), kind)
    value = info.metavar or _TYPES[inner]
    return f"{', '.join(names)} {value}{' ...' if get_origin(inner) is list else ''}"
