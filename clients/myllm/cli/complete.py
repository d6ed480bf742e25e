"""Define the command `myllm complete`: continue a text as it stands, without a chat template."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from ..errors import InvalidParameterError
from . import _options as options
from ._answers import Show, printed_json
from ._errors import EXIT_CODES, guarded


def complete(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue. Default: what is piped in.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", metavar="FILE", help="The text is in this file; - for stdin."),
    ] = None,
    url: options.Urls = None,
    model: options.Model = None,
    api_key: options.ApiKey = None,
    dialect: options.Dialect = "auto",
    timeout: options.Timeout = None,
    session: options.Session = None,
    temperature: options.Temperature = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    param: options.Params = None,
    extra: options.Extra = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    grammar: options.Grammar = None,
    no_stream: options.NoStream = False,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Continue a text as it stands; a base model's way. For questions there is `myllm chat`.

    The text comes from the argument, a file, or a pipe. The one line end
    that editors and echo put last is left out: the model would go on behind
    it. Many servers stop after 16 tokens: give --max-tokens. --json prints
    the whole answer in OpenAI's shape, whatever the kind of server.

    \b
    Examples:
      myllm complete "The capital of France is" -n 20 -t 0
      myllm complete -f story.txt -n 200 --stop "THE END"
      echo "def fib(n):" | myllm complete -n 100 -p top_p=0.9
    """
    with guarded():
        values = options.parameters(
            {
                "temperature": temperature,
                "max_tokens": max_tokens,
                "seed": seed,
                "stop": stop,
                "regex": regex,
                "choice": choice,
            },
            param,
            json_schema=json_schema,
            grammar=grammar,
        )
        text = _prompt(prompt, file)
        common: dict[str, Any] = {"session": session, "extra_body": options.named_values(extra, "--extra")}
        client = options.make_client(
            url,
            model=model,
            api_key=api_key,
            dialect=dialect,
            timeout=timeout,
            policy="round_robin" if session is None else "affinity",
        )
        show = Show(verbose=verbose)
        with client:
            show.begin()
            if as_json:
                printed_json(client.complete(text, **values, **common).model_dump(exclude_none=True))
            elif no_stream or (values.get("n") or 1) > 1:
                show.whole(client.complete(text, **values, **common))
            else:
                show.stream(client.stream_complete(text, **values, **common))


complete.__doc__ = inspect.cleandoc(complete.__doc__ or "") + EXIT_CODES


def _prompt(prompt: str | None, file: str | None) -> str:
    """Return the text to continue.

    Raises:
        InvalidParameterError: there is none, or there are two.
    """
    if prompt is not None and file is not None:
        raise InvalidParameterError("The text is given twice: as an argument and as `--file`.")
    text = prompt
    if text is None:
        text = options.read_file(file, "--file") if file is not None else options.piped()
        text = (text or "").removesuffix("\n").removesuffix("\r")
    if not text:
        raise InvalidParameterError(
            'There is no text to continue: `myllm complete "Once upon a time"`, `--file`, or a pipe.'
        )
    return text
