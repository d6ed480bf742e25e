"""Define the command `myllm serve`.

The module imports neither torch nor an HTTP library: `myllm serve --help` is quick, and the watcher of
`--exit-with-parent` runs before the slow imports begin.
"""

from __future__ import annotations

import difflib
import logging
import os
from typing import Any

import typer

from .flags.command import Flags
from .flags.option import PREFIX, is_set, options, signature
from .flags.parsing import ServeCommand
from .listen import StartError
from .logs import FORMATS, LEVELS, configure, tell

_DAY = 86_400  # seconds
_VARIABLES = {name: info.envvar or () for group in Flags.groups() for name, _, info, _ in options(group)}


def serve(ctx: typer.Context, **given: Any) -> None:
    """Serve a language model over HTTP, to clients of OpenAI's API, of vLLM and of TGI.

    Examples:
      myllm serve                                   the model that comes along
      myllm serve ./my-model --port 8080 --max-model-len 4096
      myllm serve org/name --host 0.0.0.0 --api-key KEY
      myllm serve model.gguf --served-model-name mine gpt-4o-mini
      myllm serve ./my-model --enable-auto-tool-choice --tool-call-parser hermes
      myllm serve --config server.yaml              keys are the names below

    Options: one with ... takes several values, parted by blanks, behind the
    model's name; it may be repeated, too. The names may have _ for -.
    Every option is also read from a variable: MYLLM_ and its name, as in
    MYLLM_MAX_MODEL_LEN; the variables of TGI stand below. The command line
    wins over variables, these over the file of --config.

    Beginning and end: the port is taken first, and opened when the model is
    loaded. Ctrl-C or SIGTERM stops the server: running requests may finish,
    and the exit code is 0. A mistake in the options ends it with 2, anything
    else that keeps it from starting with 1, and so does an engine that died
    meanwhile; a signal while the model is being loaded ends it at once.
    """
    try:
        code = _run(ctx, Flags.read(given))
    except StartError as error:
        tell(f"myllm serve: {error}", level=logging.ERROR)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)


# typer asks for the signature, and gets the options of all groups; the manual is written of these, too.
serve.groups = Flags.groups()  # type: ignore[attr-defined]
serve.command_class = ServeCommand  # type: ignore[attr-defined]
serve.__signature__ = signature(serve.groups)  # type: ignore[attr-defined]


def _run(ctx: typer.Context, flags: Flags) -> int:
    """Run the server, and return the exit code of the process."""
    from . import run as runner
    from .lifetime import exit_with_parent as watch_parent

    _check(ctx, flags)
    log = flags.log
    configure(
        log.log_level,
        format="json" if log.json_output else log.log_format,
        uvicorn_level=log.uvicorn_log_level,
        log_requests=log.enable_log_requests,
    )
    if flags.process.exit_with_parent:
        watch_parent(flags.process.shutdown_timeout)
    for note in _notes(ctx, flags):
        tell(f"myllm serve: {note}", level=logging.WARNING)
    runner.check_installed(tracing=log.otlp_traces_endpoint is not None)
    try:
        config, settings, listen = flags.engine_config(), flags.server_settings(), flags.listen()
    except ValueError as error:
        raise StartError(str(error), exit_code=2) from error
    return runner.run(
        config,
        settings,
        listen,
        shutdown_timeout=flags.process.shutdown_timeout,
        log_level=log.uvicorn_log_level or log.log_level,
        access_log=not log.disable_uvicorn_access_log,
    )


def _check(ctx: typer.Context, flags: Flags) -> None:
    """Refuse what no part of the server would.

    Raises:
        StartError: with exit code 2.
    """
    log, model = flags.log, flags.model
    for name, value, known in (
        ("--log-level", log.log_level, LEVELS),
        ("--uvicorn-log-level", log.uvicorn_log_level or log.log_level, LEVELS),
        ("--log-format", log.log_format, FORMATS),
    ):
        if value not in known:
            raise StartError(f"`{name}` must be one of {', '.join(known)}; got {value!r}", exit_code=2)
    seconds = flags.process.shutdown_timeout
    if not 0 <= seconds <= _DAY:  # NaN fails, too
        raise StartError(
            f"`--shutdown-timeout` must be between 0 and {_DAY} seconds (a day); got {seconds}", exit_code=2
        )
    if (
        None not in (model.model, model.model_option)
        and model.model != model.model_option
        and _source(ctx, "model_option") == "COMMANDLINE"
    ):
        raise StartError(
            f"Two models are given, {model.model!r} and `--model` {model.model_option!r}; one server has one",
            exit_code=2,
        )
    empty = [name for name in _VARIABLES["api_key"] if name in os.environ]
    if flags.network.api_key is None and empty:
        raise StartError(
            f"The variable {empty[0]} is set but holds no key: put one there, or unset it to serve "
            "without a key",
            exit_code=2,
        )


def _notes(ctx: typer.Context, flags: Flags) -> list[str]:
    """Return what a user should know of how the options were understood."""
    # The first variable that is set counts; one of our own name is meant for us.
    taken = [
        next(filter(is_set, variables))
        for option, variables in _VARIABLES.items()
        if _source(ctx, option) == "ENVIRONMENT"
    ]
    foreign = [name for name in taken if not name.startswith(PREFIX)]
    notes = [f"Options are taken from the environment: {', '.join(foreign)}"] if foreign else []
    return notes + _misspelt_variables() + flags.ignored.notes()


def _misspelt_variables() -> list[str]:
    """Return what to tell about variables that look like options and are none."""
    known = [name for variables in _VARIABLES.values() for name in variables if name.startswith(PREFIX)]
    return [
        f"{name} is the variable of no option; did you mean {near[0]}?"
        for name in sorted(os.environ)
        if name.startswith(PREFIX)
        and name not in known
        and (near := difflib.get_close_matches(name, known, n=1, cutoff=0.85))
    ]


def _source(ctx: typer.Context, name: str) -> str:
    source = ctx.get_parameter_source(name)
    return "" if source is None else source.name
