"""Assembly of the commands: each is an entry point, so that the engine's is found without importing it."""

from __future__ import annotations

import importlib.metadata

import typer

from .._version import __version__


def build() -> typer.Typer:
    """Return the application with every installed command."""
    app = typer.Typer(
        name="myllm",
        help="Serve a language model, and talk to the servers you run.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for command in sorted(importlib.metadata.entry_points(group="myllm.commands"), key=lambda c: c.name):
        app.command(command.name)(command.load())
    return app


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
