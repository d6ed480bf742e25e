"""The options that commands share, and what is made of them: a client, and the parameters of a call."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import params
from ..errors import InvalidParameterError

if TYPE_CHECKING:
    from ..client import Client

SERVER = "Server"
PARAMETERS = "Parameters"
SHAPE = "What the answer must look like (one of these)"
OUTPUT = "Output"

Urls = Annotated[
    list[str] | None,
    typer.Option(
        "--url", "-u", "--base-url", metavar="URL", rich_help_panel=SERVER,
        help="Where the server is, as in localhost:8000; repeat it for several of one model. "
        "Default: MYLLM_BASE_URL, OPENAI_BASE_URL, http://localhost:8000.",
    ),
]  # fmt: skip
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", rich_help_panel=SERVER, help="Which model. Default: the first one that is served."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SERVER, metavar="KEY",
        help="The server's key; better in MYLLM_API_KEY, out of sight.",
    ),
]  # fmt: skip
Dialect = Annotated[
    str,
    typer.Option(
        rich_help_panel=SERVER,
        help="Kind of server: vllm, tgi, sglang, llamacpp, ollama, openai; auto asks it.",
    ),
]
Timeout = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=SERVER, metavar="SECONDS",
        help="Most that a call may take. Default: 5 to connect, 300 for the answer to begin.",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print JSON, for programs.")]

Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", rich_help_panel=PARAMETERS, help="0: greedy.")
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", rich_help_panel=PARAMETERS, help="Longest answer.")
]
Seed = Annotated[int | None, typer.Option(rich_help_panel=PARAMETERS, help="Draw the same answer again.")]
Stop = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=PARAMETERS, help="End the answer before this text; may be repeated."),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-p", metavar="NAME=VALUE", rich_help_panel=PARAMETERS,
        help="Any other parameter, as in -p top_p=0.9 -p 'logit_bias={\"50\": -100}'; may be repeated. "
        "The value is JSON, or else text. Names are checked.",
    ),
]  # fmt: skip
Extra = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", rich_help_panel=PARAMETERS,
        help="A field of the server's own, sent as it is and not checked; may be repeated.",
    ),
]  # fmt: skip
JsonSchema = Annotated[
    str | None,
    typer.Option(metavar="FILE|JSON", rich_help_panel=SHAPE, help="JSON that obeys this schema."),
]
Regex = Annotated[
    str | None, typer.Option(rich_help_panel=SHAPE, metavar="PATTERN", help="Text that matches as a whole.")
]
Choice = Annotated[
    list[str] | None,
    typer.Option(rich_help_panel=SHAPE, help="One of these texts: repeat it for each."),
]
Grammar = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SHAPE, metavar="FILE", help="Text of this grammar, written as the server wants it."
    ),
]
NoStream = Annotated[
    bool, typer.Option("--no-stream", rich_help_panel=OUTPUT, help="Print the answer when it is whole.")
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", rich_help_panel=OUTPUT, help="Tell tokens and times afterwards, on stderr."
    ),
]
Session = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SERVER,
        help="With several servers: calls of one name go to one of them, whose prefix cache is then warm.",
    ),
]


def make_client(
    urls: Sequence[str] | None,
    *,
    model: str | None = None,
    api_key: str | None = None,
    dialect: str = "auto",
    timeout: float | None = None,
    **more: Any,
) -> Client:
    """Return a client for what the common options say."""
    from ..client import Client

    if timeout is not None:
        more["timeout"] = timeout
    return Client(list(urls) if urls else None, model=model, api_key=api_key, dialect=dialect, **more)


def parameters(
    given: Mapping[str, Any],
    pairs: Sequence[str] | None,
    *,
    json_schema: str | None = None,
    grammar: str | None = None,
) -> dict[str, Any]:
    """Return the parameters that the options say, checked.

    Args:
        given: options of their own, by the parameter's name; None and empty lists are not set.
        pairs: what `--param` said.
        json_schema: the schema, or a file that holds it.
        grammar: a file that holds the grammar.

    Raises:
        UnknownParameterError, InvalidParameterError: there is no such parameter, or no such value.
    """
    values = {name: value for name, value in given.items() if value not in (None, [])}
    if json_schema is not None:
        inline = json_schema.lstrip().startswith("{")
        values["json_schema"] = json_schema if inline else read_file(json_schema, "--json-schema")
    if grammar is not None:
        values["grammar"] = read_file(grammar, "--grammar")
    for name, value in named_values(pairs, "--param").items():
        if name in values:
            option = "--" + name.replace("_", "-")
            raise InvalidParameterError(f"`{option}` and `--param {name}=…` say it twice.", param=name)
        values[name] = value
    params.build(values)
    return values


def named_values(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Read NAME=VALUE pairs; a value is JSON, or else text.

    Raises:
        InvalidParameterError: one has no "=", or a name comes twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs or ():
        name, separator, text = pair.partition("=")
        name = name.strip()
        if not separator or not name:
            raise InvalidParameterError(f"`{option} {pair}`: write NAME=VALUE, as in top_p=0.9.")
        if name in values:
            raise InvalidParameterError(f"`{option} {name}=…` is given twice.", param=name)
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def read_file(path: str, option: str) -> str:
    """Return a file's text; "-" is stdin.

    Raises:
        InvalidParameterError: it cannot be read.
    """
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except OSError as exc:
        raise InvalidParameterError(f"`{option}`: {path!r} cannot be read: {exc.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidParameterError(f"`{option}`: {path!r} is no text in UTF-8.") from None


def piped() -> str | None:
    """Return what was piped or redirected into the command, or None; a terminal is not read."""
    try:
        kind = stat.S_IFMT(os.fstat(sys.stdin.fileno()).st_mode)
    except (OSError, ValueError, AttributeError):  # closed, or none at all
        return None
    return read_file("-", "stdin") if kind in (stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK) else None
