"""Define the command `myllm run-batch`: a file of requests in, a file of answers out."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from ..batch.files import BatchFileError, ErrorFile, LineFile, Sink, StreamSink, is_regular
from ..batch.job import Job, Plan, ServerUnreachable, make_plan
from ..batch.progress import reporting
from ..client import AsyncClient, Client
from ..endpoints import DEFAULT_URL, is_named
from ..errors import (
    AuthenticationError,
    ConnectError,
    InvalidParameterError,
    MissingExtraError,
    MyLLMError,
    ServerStartError,
)
from ..server import Server
from ._errors import INTERRUPTED, REFUSED, UNREACHABLE, UNWRITABLE, USAGE, in_options, told
from ._options import ApiKey, Dialect, Urls

_EXIT_CODES = {
    "interrupted": INTERRUPTED,
    "unreachable": UNREACHABLE,
    "refused": REFUSED,
    "unwritable": UNWRITABLE,
}
_SERVER = "Server"
_FILES = "Files"


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What the command line says."""

    source: str
    output: str
    errors: Path | None
    resume: bool
    ordered: bool
    concurrency: int
    wait: float | None
    json_summary: bool
    client: dict[str, Any]


def run_batch(
    source: Annotated[
        str, typer.Option("--input", "-i", help="File of requests; - for stdin.", rich_help_panel=_FILES)
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="File for the answers; - for stdout, where failed requests go too and nothing is resumed.",
            rich_help_panel=_FILES,
        ),
    ],
    errors: Annotated[
        Path | None,
        typer.Option(
            help="File for the requests that failed. Default: out.errors.jsonl beside out.jsonl.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(help="Go on with the output that is there, or overwrite it.", rich_help_panel=_FILES),
    ] = True,
    ordered: Annotated[
        bool,
        typer.Option(
            "--ordered",
            help="Write in the order of the input, not of the answers; a run cut short writes all it has.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    url: Urls = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model of the requests that name none, and of the server that is started where there is "
            "none. Default: the first one that the server serves.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    api_key: ApiKey = None,
    dialect: Dialect = "auto",
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Requests in flight.", rich_help_panel=_SERVER)
    ] = 64,
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            help="Further tries of a request that the server failed to answer.",
            rich_help_panel=_SERVER,
        ),
    ] = 5,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds for a request, its retries included. Default: 300 for an answer to begin.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds to bear servers that cannot be reached (busy ones can). Default: 60, but 0 until "
            "one has answered.",
            rich_help_panel=_SERVER,
        ),
    ] = None,
    json_summary: Annotated[
        bool, typer.Option("--json", help="Print a summary as JSON on stdout at the end.")
    ] = False,
) -> None:
    """Answer a file of requests, as fast as the server takes them.

    The files have OpenAI's batch format, with one request a line:

    \b
      {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
       "body": {"messages": [{"role": "user", "content": "Hello"}]}}

    The url may also be /v1/completions, /v1/embeddings or /v1/responses.
    Every request becomes one line of the output or, if it fails, of the
    errors file.

    Without a server, --model starts one for the time of the run: where no
    --url and no variable names one, and nothing listens on the default.

    A run that was stopped or killed goes on where it was when the same
    command is run again, and tries again what has failed.

    \b
    Examples:
      myllm run-batch -i requests.jsonl -o answers.jsonl
      myllm run-batch -i in.jsonl -o out.jsonl -c 256 \\
          -u http://gpu1:8000 -u http://gpu2:8000
      make-requests | myllm run-batch -i - -o - | use-answers
      myllm run-batch -i in.jsonl -o out.jsonl --model smollm2

    \b
    Exit codes:
      0  every request was answered     3    no server could be reached
      1  some requests failed           4    key missing, wrong or not allowed
      2  wrong usage or files           5    the output could not be written
                                        130  interrupted
    """
    client: dict[str, Any] = {"base_url": url, "model": model, "api_key": api_key, "dialect": dialect}
    client |= {"max_retries": retries} | ({} if timeout is None else {"timeout": timeout})
    settings = _Settings(
        source=source,
        output=output,
        errors=errors,
        resume=resume,
        ordered=ordered,
        concurrency=concurrency,
        wait=wait,
        json_summary=json_summary,
        client=client,
    )
    try:
        code = _run(settings)
    except (BatchFileError, InvalidParameterError) as exc:
        _say(f"myllm run-batch: {exc}")
        code = USAGE
    except (MissingExtraError, ServerStartError) as exc:
        _say(f"myllm run-batch: {told(exc)}")
        code = UNREACHABLE
    except OSError as exc:
        _say(f"myllm run-batch: {_words(exc)}.")
        code = UNWRITABLE
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)


def _run(settings: _Settings) -> int:
    """Do it all and return the exit code."""
    if settings.json_summary and settings.output == "-":
        raise InvalidParameterError("`--json` and `--output -` would mix on stdout: give one of them.")
    start = time.monotonic()
    with ExitStack() as stack:
        client = AsyncClient(**settings.client)
        source = stack.enter_context(_source(settings.source))
        out, errors = _sinks(settings, stack)
        plan = make_plan(source, settings.source, client.model, out, errors, resume=settings.resume)
        if plan.left and _wants_server(settings):
            client = AsyncClient(**{**settings.client, "base_url": _started(settings, stack)})
        with reporting(plan.requests, shown=plan.left > 0, done=plan.done) as report:
            job = Job(
                client=client,
                source=source,
                plan=plan,
                model=client.model,
                out=out,
                errors=errors,
                concurrency=settings.concurrency,
                ordered=settings.ordered,
                wait=settings.wait,
                notice=_say,
                report=report,
            )
            status = _attempt(job)
        out.sync()
    summary = _summary(settings, status, plan, job, time.monotonic() - start)
    _say(_told(summary))
    if settings.json_summary:
        typer.echo(json.dumps(summary))
    return _EXIT_CODES.get(status, int(summary["failed"] > 0))


def _wants_server(settings: _Settings) -> bool:
    """Whether a model is named, no server is, and none is where one would be looked for."""
    if settings.client["model"] is None or is_named(settings.client["base_url"]):
        return False
    with Client(timeout=2.0, max_retries=0) as client:
        try:
            client.models()
        except ConnectError as exc:
            return not exc.connected
        except MyLLMError:
            pass  # something is there; the run finds out what
    return False


def _started(settings: _Settings, stack: ExitStack) -> str:
    """Start a server for the time of the run and return its URL."""
    model = settings.client["model"]
    _say(f"There is no server at {DEFAULT_URL}: starting one of {model!r} for this run.")
    return stack.enter_context(Server(model)).url


def _attempt(job: Job) -> str:
    """Run the job to its end, and name that."""
    try:
        asyncio.run(_interruptible(job))
    except ServerUnreachable as exc:
        if not job.stopping:
            _say(f"myllm run-batch: stopped, because no server can be reached. {in_options(str(exc))}")
            return "unreachable"
    except AuthenticationError as exc:
        _say(f"myllm run-batch: stopped. {told(exc)}")
        return "refused"
    except OSError as exc:
        _say(f"myllm run-batch: stopped, because the answers cannot be written. {_words(exc)}.")
        return "unwritable"
    return "interrupted" if job.stopping else "finished"


async def _interruptible(job: Job) -> None:
    """Run the job. Ctrl-C lets the requests in flight finish; a second one, or SIGTERM, cancels them."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def cancel() -> None:
        job.stopping = True
        task.cancel()

    def interrupt() -> None:
        if job.stopping:
            cancel()
        else:
            job.stopping = True
            _say("Waiting for the requests in flight; Ctrl-C again cancels them.")

    loop.add_signal_handler(signal.SIGINT, interrupt)
    loop.add_signal_handler(signal.SIGTERM, cancel)
    try:
        await job.run()
    except asyncio.CancelledError:
        if not job.stopping:
            raise
    finally:
        await job.client.close()


def _source(name: str) -> IO[bytes]:
    """Open the input; what can be read only once is put into a temporary file first.

    Raises:
        BatchFileError: it cannot be read.
    """
    try:
        file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115 - the caller closes it
        if name != "-" and file.seekable():
            return file
        copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        shutil.copyfileobj(file, copy)
    except OSError as exc:
        raise BatchFileError(f"`--input`: {_words(exc)}.") from None
    return copy


def _sinks(settings: _Settings, stack: ExitStack) -> tuple[Sink, Sink]:
    """Open the output and the errors file; `stack` closes them.

    Raises:
        BatchFileError: a file cannot be opened, is in use, or is two things at once.
    """
    path = None if settings.output == "-" else Path(settings.output)
    errors_path = settings.errors
    if errors_path is None and path is not None and is_regular(path):
        errors_path = path.with_name(f"{path.stem}.errors{path.suffix}")
    used = [p.resolve() for p in (Path(settings.source), path, errors_path) if p is not None]
    if len(set(used)) < len(used):
        raise BatchFileError("`--input`, `--output` and `--errors` must be different files.")
    try:
        out = _sink(path)
        stack.callback(out.close)
        if errors_path is None:
            return out, out
        errors: Sink
        if is_regular(errors_path):
            errors = ErrorFile(errors_path, resume=settings.resume)
        else:
            errors = _sink(errors_path)
        stack.callback(errors.close)
    except OSError as exc:
        raise BatchFileError(f"{_words(exc)}.") from None
    return out, errors


def _sink(path: Path | None) -> Sink:
    if path is None:
        return StreamSink(sys.stdout.buffer)
    return LineFile(path) if is_regular(path) else StreamSink(path.open("wb"))


def _summary(settings: _Settings, status: str, plan: Plan, job: Job, seconds: float) -> dict[str, Any]:
    file = job.errors if isinstance(job.errors, ErrorFile) else None
    answered = plan.done + job.tally.answered
    failed = job.tally.failed if file is None else len(file)
    return {
        "status": status,
        "requests": plan.requests,
        "answered": answered,
        "failed": failed,
        "left": plan.requests - answered - failed,
        "this_run": {**asdict(job.tally), "seconds": round(seconds, 3)},
        "output": settings.output,
        "errors": str(file.path) if file is not None and failed else None,
    }


def _told(summary: dict[str, Any]) -> str:
    """Return the summary in words, and what to do next."""
    this = summary["this_run"]
    noun = "request" if summary["requests"] == 1 else "requests"
    words = f"{summary['requests']} {noun}: {summary['answered']} answered, {summary['failed']} failed"
    if summary["left"]:
        words += f", {summary['left']} left"
    if made := this["answered"] + this["failed"]:
        words += f"; {made} in {this['seconds']:.1f} s ({made / max(this['seconds'], 0.001):.1f}/s"
        words += f", {this['completion_tokens']} tokens written)" if this["completion_tokens"] else ")"
    words += "."
    if summary["errors"]:
        words += f" What failed is in {summary['errors']}."
    if summary["output"] != "-" and summary["left"]:
        words += " Run the same command again to go on."
    elif summary["output"] != "-" and summary["failed"]:
        words += " Run the same command again to try that again."
    return words


def _words(exc: OSError) -> str:
    return f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror or exc)


def _say(words: str) -> None:
    sys.stderr.write(words + "\n")
    sys.stderr.flush()
