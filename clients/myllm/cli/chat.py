"""Define the command `myllm chat`: ask once, or hold a conversation."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated, Any

import typer

from ..errors import InvalidParameterError
from . import _options as options
from ._answers import Show, printed_json
from ._errors import EXIT_CODES, guarded
from ._options import OUTPUT, PARAMETERS


def chat(
    message: Annotated[
        str | None,
        typer.Argument(help="What to say. What is piped in follows it. Neither: a conversation."),
    ] = None,
    url: options.Urls = None,
    model: options.Model = None,
    api_key: options.ApiKey = None,
    dialect: options.Dialect = "auto",
    timeout: options.Timeout = None,
    session: options.Session = None,
    system: Annotated[
        str | None,
        typer.Option("--system", "-s", rich_help_panel=PARAMETERS, help="What the model is told first."),
    ] = None,
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
    reasoning: Annotated[
        bool, typer.Option(rich_help_panel=OUTPUT, help="Show what the model thinks, on stderr.")
    ] = True,
    verbose: options.Verbose = False,
    as_json: options.Json = False,
) -> None:
    """Ask a model, or hold a conversation with it.

    The answer goes to stdout as it comes, all else to stderr. --json prints
    the whole answer in OpenAI's shape, whatever the kind of server.

    \b
    Examples:
      myllm chat "What is the capital of France?"
      git diff | myllm chat "Write a commit message for this."
      myllm chat "Is it spam? $TEXT" --choice yes --choice no -t 0
      myllm chat "Invent a person." --json-schema person.json | jq .name
      myllm chat -u gpu1:8000 -m qwen3      # a conversation; /help there

    In a shell's loop that reads lines, add </dev/null, or the first call
    reads the loop's input.
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
        question = _question(message)
        common: dict[str, Any] = {"session": session, "extra_body": options.named_values(extra, "--extra")}
        client = options.make_client(
            url,
            model=model,
            api_key=api_key,
            dialect=dialect,
            timeout=timeout,
            policy="round_robin" if session is None and question is not None else "affinity",
            message_policy="auto",
        )
        show = Show(reasoning=reasoning, verbose=verbose)
        with client:
            if question is None:
                if as_json:
                    raise InvalidParameterError("`--json` needs a message: programs hold no conversations.")
                from ._conversation import Conversation

                talk = Conversation(client, show, values, system=system, stream=not no_stream, common=common)
                raise typer.Exit(talk.run())
            messages = [{"role": "user", "content": question}]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            show.begin()
            if as_json:
                printed_json(client.chat(messages, **values, **common).model_dump(exclude_none=True))
            elif no_stream or (values.get("n") or 1) > 1:
                show.whole(client.chat(messages, **values, **common))
            else:
                show.stream(client.stream_chat(messages, **values, **common))


chat.__doc__ = inspect.cleandoc(chat.__doc__ or "") + EXIT_CODES


def _question(message: str | None) -> str | None:
    """Return what is asked: the argument, and what is piped in; None: a person sits at the terminal.

    Raises:
        InvalidParameterError: there is nothing to ask, and nobody to ask for it.
    """
    more = (options.piped() or "").strip()
    question = "\n\n".join(part for part in (message, more) if part)
    if question:
        return question
    if message is not None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidParameterError(
            'There is nothing to ask: give a message (`myllm chat "Hello"`), or pipe one in. '
            "A conversation needs a terminal."
        )
    return None
