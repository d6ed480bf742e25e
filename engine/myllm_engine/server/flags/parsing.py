"""Parse the command line of `myllm serve`, beyond what typer's own command does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from .option import PREFIX, is_set

_MODEL = "model_option"


class ServeCommand(TyperCommand):
    """Take further values after an option that may be repeated, and tell where a wrong value comes from."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse a command line.

        Raises:
            typer.BadParameter: a value is none of its option, or it is not clear what a word is.
        """
        normalize = ctx.token_normalize_func or str
        try:
            return super().parse_args(ctx, list(repeat_options(args, self.get_params(ctx), normalize)))
        except typer.BadParameter as error:
            if error.param is not None:
                error.param_hint, hint = _origin(ctx, error.param)
                error.message += hint
            raise


def repeat_options(args: Iterable[str], params: Iterable[Any], normalize: Any = str) -> Iterator[str]:
    """Yield a command line in which each value of an option that may be repeated has the option before it.

    So `MODEL --served-model-name a b c` means what it means to vLLM, whose options take words up to the next
    option. A word behind such a value is the model as long as none is named: before it, or by `--model`.

    Raises:
        typer.BadParameter: it may be the model, and it may be one of several values.
    """
    args = list(args)
    known = {spelling: param for param in params for spelling in (*param.opts, *param.secondary_opts)}
    options = [known.get(normalize(word.partition("=")[0])) for word in args]
    has_model = any(param is not None and param.name == _MODEL for param in options)
    repeated = in_doubt = None
    words = iter(zip(args, options, strict=True))
    for word, param in words:
        if word == "--":
            yield word
            yield from (rest for rest, _ in words)
        elif word.startswith("-") and word != "-":
            yield word
            repeated = in_doubt = None
            if param is None or param.is_flag:
                continue
            if param.multiple:
                repeated = normalize(word.partition("=")[0])
            if "=" not in word:
                yield from (value for value, _ in (next(words, None),) if value)
        elif in_doubt is not None:
            option, first = in_doubt
            raise typer.BadParameter(
                f"{first!r} and {word!r} may be further values, and {first!r} may be the model: name the "
                f"model first, as in `MODEL {option} VALUE VALUE`, or repeat the option",
                param_hint=f"'{option}'",
            )
        elif repeated is not None and has_model:
            yield repeated
            yield word
        else:
            yield word
            in_doubt = None if repeated is None else (repeated, word)
            has_model, repeated = True, None


def _origin(ctx: Any, param: Any) -> tuple[str, str]:
    """Return where a value comes from, and what is to be known of such a place."""
    names = " / ".join(f"'{name}'" for name in param.opts)
    source = ctx.get_parameter_source(param.name)
    match "" if source is None else source.name:
        case "ENVIRONMENT":
            variable = next(filter(is_set, param.envvar))
            value, hint = os.environ[variable], ""
            if variable == f"{PREFIX}PORT" and "://" in value:
                hint = (
                    "; Kubernetes sets this variable where there is a service named myllm: give --port, or "
                    "set `enableServiceLinks: false` in the pod"
                )
            return f"{names} (variable {variable}: {value!r})", hint
        case "DEFAULT_MAP":
            return f"{names} (file {ctx.params['config']!r}: {ctx.default_map[param.name]!r})", ""
        case _:
            return names, ""
