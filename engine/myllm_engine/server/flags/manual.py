"""Write the help of `myllm serve`.

typer draws a table, whose columns cut the names of options at the width of usual terminals.
"""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any, get_args

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
    remarks = []
    if not (default is None or default is False or default == ""):
        remarks.append(f"default: {'on' if default is True else default}")
    elif isinstance(info.show_default, str):
        remarks.append(f"default: {info.show_default}")
    if foreign := [variable for variable in info.envvar or () if not variable.startswith(PREFIX)]:
        remarks.append(f"also {', '.join(foreign)}")
    text = info.help + (f" [{'; '.join(remarks)}]" if remarks else "")
    # Paths, URLs and JSON are not broken at their dashes.
    lines = textwrap.wrap(text, width - 8, break_on_hyphens=False, break_long_words=False)
    return "\n".join([f"  {spelling(name, kind, info)}", *(f"        {line}" for line in lines)])


def spelling(name: str, kind: Any, info: OptionInfo | ArgumentInfo) -> str:
    """Return the ways to write an option, as `-p, --port N`."""
    if isinstance(info, ArgumentInfo):
        return name.upper()
    names = [info.default, *(info.param_decls or ())] if isinstance(info.default, str) else []
    if kind is bool and not names:
        return f"--[no-]{name.replace('_', '-')}"
    names = sorted(names or [f"--{name.replace('_', '-')}"], key=lambda item: item.startswith("--"))
    return ", ".join(names) + ("" if kind is bool else f" {info.metavar or _type_name(kind)}")


def _type_name(kind: Any) -> str:
    inner = [item for item in get_args(kind) if item is not type(None)]
    if not inner:
        return _TYPES[kind]
    return _type_name(inner[0])
