"""The conversation that `myllm chat` holds at a terminal."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shlex
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import params
from ..client import Client
from ..errors import AllEndpointsDown, ContextLengthError, InvalidParameterError, MyLLMError
from ..types import ChatCompletion
from ._answers import Show
from ._errors import INTERRUPTED, say, told
from ._options import named_values

with contextlib.suppress(ImportError):
    import readline  # noqa: F401 - lets `input` edit its line and recall earlier ones

_PROMPT, _CONTINUED, _FENCE = ">>> ", "... ", '"""'


class _Over(Exception):
    """The person has left."""


class Conversation:
    """A conversation; `run` holds it until the person leaves.

    Args:
        client: which model, and where.
        show: how answers are shown.
        values: parameters of every call.
        system: what the model is told first.
        stream: show answers as they come.
        common: further options of every call.
    """

    def __init__(
        self,
        client: Client,
        show: Show,
        values: dict[str, Any],
        *,
        system: str | None = None,
        stream: bool = True,
        common: dict[str, Any] | None = None,
    ) -> None:
        self.client = client
        self.model = client.model
        self.values = values
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self._show = show
        self._stream = stream
        self._common = dict(common or ())
        # All turns go to the server that has the beginning in its cache.
        self._common["session"] = self._common.get("session") or uuid.uuid4().hex
        self._question: str | None = None
        self._notes = Console(stderr=True, highlight=False, markup=False)
        self._commands: dict[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "this list"),
            "/system": (self._set_system, "TEXT  tell the model this first; without TEXT, show it"),
            "/clear": (self._clear, "forget the conversation, but not the system text"),
            "/history": (self._history, "show the conversation"),
            "/retry": (self._retry, "ask the last question again"),
            "/model": (self._set_model, "NAME  ask another model; without NAME, list them"),
            "/params": (self._set_params, "NAME=VALUE …  set parameters (NAME= unsets); without, show them"),
            "/save": (self._save, "FILE  write the conversation as JSON"),
            "/exit": (self._exit, "leave; Ctrl-D does, too"),
        }

    def run(self) -> int:
        """Hold the conversation and return the exit code.

        Raises:
            MyLLMError: no server can be reached, or it refuses the key: there is nobody to talk to.
        """
        self._greet()
        interrupted = False
        while True:
            try:
                line = input(_PROMPT)
                interrupted = False
                if line.startswith("/"):
                    self._command(line)
                elif text := self._text(line):
                    interrupted = not self._ask(text)
            except KeyboardInterrupt:
                sys.stderr.write("\n")
                if interrupted:
                    return INTERRUPTED
                interrupted = True
                self._note("Ctrl-C again, Ctrl-D or /exit leaves.")
            except (EOFError, _Over):
                return 0
            except MyLLMError as exc:
                say(f"myllm: {told(exc)}")

    # --- asking --------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> bool:
        """Ask, and keep question and answer; return False if the answer was broken off."""
        self._question = text
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = [*self.messages, {"role": "user", "content": text}]
        options: Any = {**self.values, **self._common, "model": self.model}
        self._show.begin()
        whole = True
        try:
            if self._stream and (self.values.get("n") or 1) == 1:
                answer = self._show.stream(self.client.stream_chat(head + asked, **options))
            else:
                completion = self.client.chat(head + asked, **options)
                self._show.whole(completion)
                answer = completion
            assert isinstance(answer, ChatCompletion)
            said = answer.text
        except KeyboardInterrupt:
            whole, said = False, self._show.stopped()
            self._note("(stopped)" if said else "(stopped before it began)")
        except ContextLengthError as exc:
            say(f"myllm: {told(exc)} /clear forgets the conversation.")
            return True
        except MyLLMError as exc:
            said = self._show.stopped()
            say(f"myllm: {told(exc)}{'' if said else ' /retry asks again.'}")
        if said:  # else the question is forgotten, for two in a row are more than many chat templates take
            self.messages = [*asked, {"role": "assistant", "content": said}]
        return whole

    def _greet(self) -> None:
        told_of = self.client.server_info()
        errors = {url: info for url, info in told_of.items() if isinstance(info, MyLLMError)}
        if len(errors) == len(told_of):
            if len(errors) == 1:
                raise next(iter(errors.values()))
            words = " ".join(f"[{url}] {exc.message}" for url, exc in errors.items())
            raise AllEndpointsDown(f"None of {len(errors)} servers answers: {words}", errors=errors)
        for url, info in told_of.items():
            if isinstance(info, MyLLMError):
                say(f"myllm: {told(info)}")
                continue
            names = [model.id for model in info.models]
            model = self.model or (names[0] if names else "a model")
            product = f" ({info.product})" if info.product else ""
            self._note(f"{model} at {url}{product}")
        self._note(f"/help tells what else there is; {_FENCE} begins and ends a text of several lines.")

    # --- reading -------------------------------------------------------------------------------------------

    def _text(self, line: str) -> str:
        """Return what the person says: this line, or the lines between fences that it begins."""
        text = line.strip()
        if not text.startswith(_FENCE):
            return text
        lines = [text.removeprefix(_FENCE)]
        while not lines[-1].rstrip().endswith(_FENCE):
            lines.append(input(_CONTINUED))
        lines[-1] = lines[-1].rstrip().removesuffix(_FENCE)
        return "\n".join(lines).strip("\n")

    def _note(self, words: str) -> None:
        self._notes.print(words, style="dim", soft_wrap=True)

    # --- commands ------------------------------------------------------------------------------------------

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        name = {"/quit": "/exit", "/bye": "/exit", "/?": "/help"}.get(name, name)
        if name not in self._commands:
            near = difflib.get_close_matches(name, self._commands, n=1)
            guess = f" Did you mean {near[0]}?" if near else ""
            say(
                f"There is no {name}.{guess} /help lists what there is; with a blank before it, it is a text."
            )
            return
        self._commands[name][0](rest.strip())

    def _help(self, rest: str) -> None:
        for name, (_, words) in self._commands.items():
            self._note(f"  {name:<9} {words}")
        self._note(f"  {_FENCE:<9} begins and ends a text of several lines")
        self._note("  Ctrl-C    stop the answer; twice, leave")

    def _set_system(self, rest: str) -> None:
        if rest:
            self.system = rest
        self._note(f"System text: {self.system}" if self.system else "There is no system text.")

    def _clear(self, rest: str) -> None:
        self.messages = []
        self._common["session"] = uuid.uuid4().hex
        self._note("Forgotten.")

    def _history(self, rest: str) -> None:
        if not self.messages:
            self._note("Nothing was said yet.")
        for message in self.messages:
            self._note(f"{message['role']}: {message['content']}")

    def _retry(self, rest: str) -> None:
        if self._question is None:
            self._note("Nothing was asked yet.")
            return
        if len(self.messages) >= 2 and self.messages[-2]["content"] == self._question:
            self.messages = self.messages[:-2]
        self._note(f"Asked again: {self._question}")
        self._ask(self._question)

    def _set_model(self, rest: str) -> None:
        names = [model.id for model in self.client.models()]
        if rest and rest not in names:
            near = difflib.get_close_matches(rest, names, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise InvalidParameterError(f"{rest!r} is not served.{guess} There is {', '.join(names)}.")
        self.model = rest or self.model
        now = self.model or (names[0] if names else None)
        for name in names:
            self._note(f"{'*' if name == now else ' '} {name}")

    def _set_params(self, rest: str) -> None:
        try:
            words = shlex.split(rest)
        except ValueError as exc:
            raise InvalidParameterError(f"`/params {rest}`: {exc}.") from None
        given = named_values(words, "/params")
        values = params.canonical(self.values) | params.canonical(given)
        values = {name: value for name, value in values.items() if value not in ("", None)}
        params.build(values)
        self.values = values
        for name, value in values.items():
            self._note(f"  {name} = {json.dumps(value, ensure_ascii=False)}")
        if not values:
            self._note("None are set: the server's defaults hold.")

    def _save(self, rest: str) -> None:
        if not rest:
            raise InvalidParameterError("Where to? `/save FILE`.")
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        saved = {"model": self.model, "messages": head + self.messages, **self.values}
        path = Path(os.path.expanduser(rest))  # noqa: PTH111 - which leaves `~nobody` as it is
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(json.dumps(saved, indent=2, ensure_ascii=False) + "\n")
        except OSError as exc:
            raise InvalidParameterError(f"{rest!r} cannot be written: {exc.strerror}.") from None
        self._note(f"{len(saved['messages'])} messages are in {path}.")

    def _exit(self, rest: str) -> None:
        raise _Over
