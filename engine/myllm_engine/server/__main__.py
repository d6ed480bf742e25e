"""Run the server: `python -m myllm_engine.server --model smollm2 --port 8000`."""

from __future__ import annotations

import typer

from .cli import serve

if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    app.command()(serve)
    app(prog_name="python -m myllm_engine.server")
