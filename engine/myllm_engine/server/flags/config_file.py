"""Read options from a YAML file (`--config`), as vLLM does."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import typer
import yaml


class _Loader(yaml.SafeLoader):
    """Refuse a mapping in which a key stands twice: of the two, one would be dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"`{key.value}` stands there a second time", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(ctx: typer.Context, path: str | None) -> str | None:
    """Make the file's values the defaults of the command's options; typer's callback of `--config`.

    Raises:
        typer.BadParameter: the file cannot be read, or holds what is no option.
    """
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **read(path, ctx.command.params)}
    return path


def read(path: str, params: list[Any]) -> dict[str, Any]:
    """Return the values of a file by the names of the command's parameters.

    Keys are the long names of options, all of their spellings, with - or _. Lists repeat an option, mappings
    are JSON for it, null leaves it alone.

    Args:
        path: of the YAML file.
        params: of the command.

    Raises:
        typer.BadParameter: see `load`.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{path!r} cannot be read: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path!r} must hold options as `name: value`")
    known = {
        name.removeprefix("--"): param
        for param in params
        for name in param.opts
        if name.startswith("--") and name not in ("--config", "--help")
    }
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise typer.BadParameter(f"{path!r} holds `{key}`, which is no option{hint}")
        param = known[name]
        if param.name in values:
            raise typer.BadParameter(f"{path!r} holds `{key}` a second time, maybe under another name")
        if value is not None:
            values[param.name] = _value(path, key, value, param)
    return values


def _value(path: str, key: Any, value: Any, param: Any) -> Any:
    """Return a value as it would stand on the command line."""
    if param.is_flag:
        if not isinstance(value, bool):
            raise typer.BadParameter(f"`{key}` in {path!r} must be true or false; got {value!r}")
        return value
    if isinstance(value, bool):
        raise typer.BadParameter(f"`{key}` in {path!r} takes a value, not {str(value).lower()}")
    if param.multiple:
        return [_text(item) for item in (value if isinstance(value, list) else [value])]
    return _text(value)


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
