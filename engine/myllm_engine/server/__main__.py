"""Run the server: `python -m myllm_engine.server --model smollm2 --port 8000`."""

from __future__ import annotations

import typer

from .cli import serve
from .flags.parsing import ServeCommand


def application() -> typer.Typer:
    """Return the command `serve` by itself."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    context = {"token_normalize_func": lambda name: name.replace("_", "-")}
    app.command(cls=ServeCommand, context_settings=context)(serve)
    return app


def main(program: str = "python -m myllm_engine.server") -> None:
    """Run the command `serve` by itself."""
    application()(prog_name=program)


if __name__ == "__main__":
    main()
