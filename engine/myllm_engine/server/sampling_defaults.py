"""Find the values of sampling parameters that requests leave out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

# Names in a `generation_config.json` that vLLM heeds (vllm/config/model.py, `get_diff_sampling_param`), and
# what requests call them.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}

Body = TypeVar("Body", bound=BaseModel)


def sampling_defaults(*configs: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults by the names of requests; later configs win, and all else in them is left alone."""
    return {
        ours: config[theirs]
        for config in configs
        for theirs, ours in _NAMES.items()
        if config.get(theirs) is not None
    }


def check_override(override: Mapping[str, Any]) -> None:
    """Refuse what would have no effect: in a file it was written for others, here for us.

    Raises:
        ValueError: a name is not known.
    """
    for name in override:
        if name not in _NAMES:
            near = difflib.get_close_matches(name, _NAMES, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; known are {', '.join(_NAMES)}"
            raise ValueError(f"`--override-generation-config` holds `{name}`{hint}")


def read_generation_config(path: str) -> dict[str, Any]:
    """Read a `generation_config.json`, or the one in a folder.

    Raises:
        ValueError: there is none, or it holds something else.
    """
    file = Path(path)
    if file.is_dir():
        file /= "generation_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"`--generation-config` {path!r} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"`--generation-config` {path!r} must hold a JSON object")
    return config


def with_defaults(body: Body, defaults: Mapping[str, Any]) -> Body:
    """Return a request's body in which parameters that it leaves out have the server's defaults."""
    missing = {name: value for name, value in defaults.items() if getattr(body, name, ...) is None}
    return body.model_copy(update=missing) if missing else body
