"""Turn dataclasses of options into the signature that typer reads, and back."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

PREFIX = "MYLLM_"


def flag(
    help: str,
    *names: str,
    env: Sequence[str] | None = (),
    **details: Any,
) -> Any:
    """Describe an option; the annotation of a group's field.

    Args:
        help: what it does.
        names: its spellings, such as "--port" and "-p"; default: the field's name, and for a switch its
            `--no-` form besides.
        env: variables of other servers that set it, too; every option is set by `MYLLM_` and its name. None:
            not even that.
        details: for `typer.Option`.
    """
    return typer.Option(*names, help=help, envvar=None if env is None else list(env), **details)


def options(group: type) -> Iterator[tuple[str, Any, OptionInfo | ArgumentInfo, Any]]:
    """Yield `(name, type, info, default)` for each option of a group."""
    hints = get_type_hints(group, include_extras=True)
    for item in dataclasses.fields(group):
        annotation = hints[item.name]
        assert get_origin(annotation) is Annotated, f"{group.__name__}.{item.name} is no option"
        kind, info = get_args(annotation)
        info = copy.copy(info)
        if isinstance(info, OptionInfo) and info.envvar is not None:
            info.envvar = [variable(item.name, info), *info.envvar]
        yield item.name, kind, info, item.default


def variable(name: str, info: OptionInfo) -> str:
    """Return our variable for an option: `MYLLM_` and its first spelling."""
    # In an annotation the first spelling stands where a default value would.
    first = info.default if isinstance(info.default, str) else name
    return PREFIX + first.lstrip("-").replace("-", "_").upper()


def is_set(variable: str) -> bool:
    """Tell whether a variable of the environment has a value that counts."""
    return bool(os.environ.get(variable))


def signature(groups: Sequence[type]) -> inspect.Signature:
    """Return the signature of a command with the options of all groups, and with typer's context."""
    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for group in groups:
        for name, kind, info, default in options(group):
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
                )
            )
    return inspect.Signature(parameters)


def fill(group: type[Any], values: Mapping[str, Any]) -> Any:
    """Return a group with the values that typer has read."""
    return group(**{item.name: values[item.name] for item in dataclasses.fields(group)})
