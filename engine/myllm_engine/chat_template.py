"""Find chat templates, and give them the contents of messages in the form that they read.

`templates/` holds templates for families whose models come without one; `docs/templates.md` has their list.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .errors import InvalidRequestError

_FOLDER = Path(__file__).parent / "templates"
# Families that share a format with another.
_SAME_FORMAT = {"codellama": "llama2", "wizardcoder": "alpaca"}
_PROBE = "probe"

Messages = list[dict[str, Any]]


def bundled_templates() -> list[str]:
    """Return the names of the chat templates that come with the engine, sorted."""
    return sorted([path.stem for path in _FOLDER.glob("*.jinja")] + list(_SAME_FORMAT))


def read_bundled(name: str) -> str:
    """Return the Jinja text of a bundled template; `name` is one of `bundled_templates()`."""
    return (_FOLDER / f"{_SAME_FORMAT.get(name, name)}.jinja").read_text(encoding="utf-8")


def find_template(value: str, named: Mapping[str, str]) -> str | None:
    """Return the template that is meant: Jinja text itself, a name among `named`, or a bundled one's name.

    None when it is none of these; no file is looked for.
    """
    if "{" in value or "\n" in value:
        return value
    if value in named:
        return named[value]
    return read_bundled(value) if value in bundled_templates() else None


class ContentReader:
    """Give templates the contents of messages as they read them: as strings, or as lists of parts.

    Some templates read strings alone, those of models that see images often parts alone, and either kind
    loses what comes in the other form, or prints it as Python would. So each is tried once with both.

    Args:
        render: renders messages with a template, as text; may raise anything.
    """

    def __init__(self, render: Callable[[Messages, str], str]) -> None:
        self._render = render
        # Requests may bring templates of their own, and any number of them.
        self._forms = functools.lru_cache(maxsize=64)(self._try_forms)

    def fit(self, messages: Messages, template: str, form: str = "auto") -> Messages:
        """Return the messages with each content in a form that the template reads.

        Args:
            messages: to fit.
            template: as Jinja text.
            form: "string" or "openai" (parts), where it is known; "auto": what was found out.

        Raises:
            InvalidRequestError: a message holds something else than text, and the template reads text alone.
        """
        strings, parts = (form == "string", form == "openai") if form != "auto" else self._forms(template)
        return [
            {**message, "content": _convert(message["content"], strings=strings, parts=parts)}
            if isinstance(message.get("content"), (str, list))
            else message
            for message in messages
        ]

    def _try_forms(self, template: str) -> tuple[bool, bool]:
        """Return whether the template reads strings, and whether it reads parts."""
        parts = self._shows([{"type": "text", "text": _PROBE}], template)
        # One that refuses even a lone question, as it wants more than that, is taken to read strings.
        return self._shows(_PROBE, template) or not parts, parts

    def _shows(self, content: Any, template: str) -> bool:
        try:
            text = self._render([{"role": "user", "content": content}], template)
        except Exception:  # noqa: BLE001 - a template is a program: this one does not read such a content
            return False
        return _PROBE in text and "'type'" not in text


def _convert(content: Any, *, strings: bool, parts: bool) -> Any:
    if isinstance(content, str):
        return content if strings else [{"type": "text", "text": content}]
    kinds = {part.get("type") for part in content}
    if strings and kinds <= {"text"}:
        return "\n".join(part["text"] for part in content)
    if not parts:
        other = ", ".join(sorted(repr(kind) for kind in kinds - {"text"}))
        raise InvalidRequestError(
            f"The chat template reads text alone, and the messages hold parts of the type {other}: choose a "
            "template that has a place for them with `--chat-template`",
            param="messages",
        )
    return content
