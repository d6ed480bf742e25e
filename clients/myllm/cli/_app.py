"""Assembly of the commands: each is an entry point, loaded when it is used or when help lists it.

So `myllm serve` does not load the SDK, nor `myllm chat` the engine, and a command that cannot be loaded is
no harm to the others.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from .._version import __version__

_GROUP = "myllm.commands"


def _with_dashes(name: str) -> str:
    """Return an option's name with dashes; vLLM's users write underscores, too."""
    return name.replace("_", "-")


_CONTEXT: dict[Any, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": _with_dashes,
}


def build() -> typer.Typer:
    """Return the application with every installed command."""
    app = typer.Typer(
        name="myllm",
        cls=_Commands,
        help="Serve a language model, and talk to the servers you run.",
        epilog="`myllm COMMAND --help` explains a command, with examples.",
        no_args_is_help=True,
        context_settings=_CONTEXT,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    return app


class _Commands(TyperGroup):
    """Finds commands by name among the entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names."""
        return sorted({command.name for command in importlib.metadata.entry_points(group=_GROUP)})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is asked for; where there is none, load them all: the near ones are named."""
        if args and args[0] not in (names := self.list_commands(ctx)):
            self.commands.update({name: self.get_command(ctx, name) for name in names})
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a command; None where there is none of that name."""
        for command in importlib.metadata.entry_points(group=_GROUP, name=cmd_name):
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            try:
                callback = command.load()
            except ImportError as exc:
                callback = _unloadable(cmd_name, str(exc))
            parser = getattr(callback, "command_class", None)  # of a command that parses more than typer does
            app.command(cmd_name, cls=parser, context_settings=_CONTEXT)(callback)
            return get_command(app)
        return None


def _unloadable(name: str, why: str) -> Any:
    def command() -> None:
        typer.echo(f"myllm {name}: {why}", err=True)
        raise typer.Exit(1)

    command.__doc__ = f"(Not usable: {why})"
    return command


def _version(value: bool) -> None:
    if value:
        typer.echo(f"myllm {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Serve a language model, and talk to the servers you run."""
