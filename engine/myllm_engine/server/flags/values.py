"""Read the values of `myllm serve`'s options that are more than a number or a word.

Imports neither torch nor an HTTP library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from ...config import SpeculativeConfig

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

# vLLM's keys, and what they are called in `SpeculativeConfig`.
_SPECULATIVE = {
    "method": "method",
    "model": "model",
    "num_speculative_tokens": "num_tokens",
    "prompt_lookup_max": "max_ngram",
    "prompt_lookup_min": "min_ngram",
}
_METHODS = {"ngram": "ngram", "draft_model": "draft", "draft": "draft"}


def parse_size(text: str) -> int:
    """Return a number of bytes: `parse_size("2GiB") == 2 * 2**30`.

    Decimal units are k, M, G, T, binary ones Ki, Mi, Gi, Ti, either with or without a final "B".

    Raises:
        ValueError: when `text` is not a size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*(?:([kmgt])(i?))?b?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is not a size; write bytes or a unit, as in 512MiB or 4GiB")
    number, unit, binary = match.groups(default="")
    return int(float(number) * (1024 if binary else 1000) ** _UNITS[unit.lower()])


def parse_speculative(text: str) -> SpeculativeConfig:
    """Read vLLM's form of a speculative configuration, JSON with vLLM's keys.

    `num_speculative_tokens` is required, as there. Without `method`, a `model` means "draft_model", and no
    model "ngram". Of `prompt_lookup_max` and `prompt_lookup_min`, one that is missing is the default, or the
    other one where that would contradict it.

    Raises:
        ValueError: it is no such JSON, or holds a key or a value that is not known here.
    """
    given = json_object("--speculative-config", text)
    if unknown := sorted(given.keys() - _SPECULATIVE.keys()):
        known = ", ".join(f"`{key}`" for key in _SPECULATIVE)
        raise ValueError(f"`--speculative-config` holds `{unknown[0]}`; known are {known}")
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        wrong = not isinstance(value, str) or not value
        if key in ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min"):
            wrong = isinstance(value, bool) or not isinstance(value, int) or value < 1
        if wrong:
            kind = "a text" if key in ("method", "model") else "an integer of 1 or more"
            raise ValueError(f"`{key}` in `--speculative-config` must be {kind}; got {value!r}")
    if "num_speculative_tokens" not in given:
        raise ValueError("`--speculative-config` needs `num_speculative_tokens`, the tokens proposed a step")
    method = given.setdefault("method", "draft_model" if "model" in given else "ngram")
    if method not in _METHODS:
        raise ValueError(
            f"`method` in `--speculative-config` must be 'ngram' or 'draft_model'; got {method!r}"
        )
    given["method"] = _METHODS[method]
    if ("model" in given) != (given["method"] == "draft"):
        raise ValueError(
            "`model` in `--speculative-config` belongs to the method 'draft_model', which needs it"
        )
    longest, shortest = given.get("prompt_lookup_max"), given.get("prompt_lookup_min")
    if longest is not None and shortest is not None and shortest > longest:
        raise ValueError(
            f"`prompt_lookup_min` ({shortest}) in `--speculative-config` must not be above "
            f"`prompt_lookup_max` ({longest})"
        )
    usual = SpeculativeConfig()
    if longest is not None:
        given.setdefault("prompt_lookup_min", min(longest, usual.min_ngram))
    if shortest is not None:
        given.setdefault("prompt_lookup_max", max(shortest, usual.max_ngram))
    return SpeculativeConfig(**{_SPECULATIVE[key]: value for key, value in given.items()})


def parse_lora_modules(values: Sequence[str]) -> dict[str, str]:
    """Return adapters' folders by name, from `name=path` or vLLM's `{"name": …, "path": …}`.

    Raises:
        ValueError: one is neither, or two have one name.
    """
    adapters: dict[str, str] = {}
    for value in values:
        if value.lstrip().startswith("{"):
            given = json_object("--lora-modules", value)
            if unknown := sorted(given.keys() - {"name", "path"}):
                raise ValueError(f"`--lora-modules` holds `{unknown[0]}`; known are `name` and `path`")
            name, path = given.get("name"), given.get("path")
        else:
            name, _, path = value.partition("=")
        if not (isinstance(name, str) and name and isinstance(path, str) and path):
            raise ValueError(f"`--lora-modules` must be NAME=PATH; got {value!r}")
        if name in adapters:
            raise ValueError(f"`--lora-modules` names two adapters {name!r}")
        adapters[name] = path
    return adapters


def parse_lora_adapters(text: str, *, besides: Container[str]) -> dict[str, str]:
    """Return adapters' folders by name, from TGI's `name=path,path`.

    Args:
        text: one that has no name is named by its path.
        besides: names that are taken.

    Raises:
        ValueError: a part is empty, or a name is given twice.
    """
    adapters: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, _, path = part.strip().partition("=")
        path = path or name
        if not path or not name:
            raise ValueError(f"`--lora-adapters` must be [NAME=]PATH, parted by commas; got {text!r}")
        if name in adapters or name in besides:
            raise ValueError(f"`--lora-adapters` names an adapter {name!r} that there is already")
        adapters[name] = path
    return adapters


def read_chat_template(path: str) -> str:
    """Return the chat template in a `tokenizer_config.json`; of several, the one called "default".

    Raises:
        ValueError: it cannot be read, or has none.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
        template = config.get("chat_template")
        if isinstance(template, list):
            template = {each["name"]: each["template"] for each in template}.get("default")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"`--tokenizer-config-path` {path!r} cannot be read: {error!r}") from error
    if not isinstance(template, str):
        raise ValueError(f"`--tokenizer-config-path` {path!r} has no `chat_template`")
    return template


def parse_list(values: Sequence[str] | None) -> list[str]:
    """Return the words of an option that is a JSON list, parted by commas, or repeated.

    Raises:
        ValueError: it begins as a JSON list, and is none of strings.
    """
    if not values:
        return []
    if not values[0].lstrip().startswith("["):
        return [word for value in values for part in value.split(",") if (word := part.strip())]
    text = " ".join(values)  # a variable is parted by blanks
    try:
        words = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text!r} is not a JSON list: {error}") from None
    if not all(isinstance(word, str) for word in words):
        raise ValueError(f"{text!r} must hold strings only")
    return words


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """Return the object that an option holds as JSON; an empty one when it is not given.

    Raises:
        ValueError: it holds something else.
    """
    if text is None:
        return {}
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`{flag}` is not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"`{flag}` must be a JSON object; got {text!r}")
    return given
