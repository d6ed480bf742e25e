"""Answers on the screen: the text on stdout as it comes, all else on stderr."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from ..stream import Stream
from ..types import ChatChunk, ChatCompletion, Completion, CompletionChunk
from ._errors import say

# A model must not steer the terminal: titles, colours, the clipboard.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
AnyStream = Stream[ChatChunk, ChatCompletion] | Stream[CompletionChunk, Completion]
AnyAnswer = ChatCompletion | Completion


@dataclass
class Show:
    """Shows answers.

    Attributes:
        reasoning: show what the model thinks, dim, on stderr.
        verbose: tell tokens and times afterwards.
        text: what was shown of the answer under way.
    """

    reasoning: bool = True
    verbose: bool = False
    text: str = ""
    _started: float = field(default_factory=time.monotonic)
    _first: float | None = None
    _thinking: bool = False
    _dim: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, markup=False))

    def begin(self) -> None:
        """Start the clock, before the request is sent."""
        self._started, self._first, self.text, self._thinking = time.monotonic(), None, "", False

    def stream(self, stream: AnyStream) -> AnyAnswer:
        """Show a stream as it comes and return the whole answer."""
        with stream:
            for chunk in stream:
                if self._first is None and chunk.choices:
                    self._first = time.monotonic()
                if isinstance(chunk, ChatChunk):
                    self._think("".join(c.delta.reasoning or "" for c in chunk.choices if c.index == 0))
                self._write(chunk.text)
        answer: AnyAnswer = stream.final()
        self._end(answer)
        return answer

    def whole(self, answer: AnyAnswer) -> None:
        """Show an answer that came at once, with all its choices."""
        for choice in answer.choices:
            if choice.index:
                self._break()
                self._write("---\n")
            if isinstance(answer, ChatCompletion):
                self._think(answer.choices[choice.index].message.reasoning or "")
                self._write(answer.choices[choice.index].message.content or "")
            else:
                self._write(answer.choices[choice.index].text)
        self._end(answer)

    def stopped(self) -> str:
        """End the line of an answer that was broken off, and return what was shown of it."""
        text = self.text
        self._break()
        return text

    def _write(self, text: str) -> None:
        if not text:
            return
        if self._thinking:
            self._dim.print()
            self._thinking = False
        self.text += text
        sys.stdout.write(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text)
        sys.stdout.flush()

    def _think(self, text: str) -> None:
        if text and self.reasoning:
            self._dim.print(_CONTROL.sub("", text), style="dim", end="", soft_wrap=True)
            self._thinking = True

    def _break(self) -> None:
        if self._thinking:
            self._dim.print()
            self._thinking = False
        if self.text and not self.text.endswith("\n"):
            sys.stdout.write("\n")
            self.text += "\n"
        sys.stdout.flush()

    def _end(self, answer: AnyAnswer) -> None:
        if isinstance(answer, ChatCompletion):
            for call in answer.message.tool_calls or ():
                self._break()
                self._write(json.dumps({"name": call.function.name, "arguments": call.function.arguments}))
        self._break()
        if answer.choices[0].finish_reason == "length":
            say("myllm: the answer was cut off at its greatest length (`--max-tokens`, or the context's).")
        if self.verbose:
            say(self._stats(answer))

    def _stats(self, answer: AnyAnswer) -> str:
        end = time.monotonic()
        parts = [f"{end - self._started:.2f} s"]
        if self._first is not None:
            parts.append(f"first token after {self._first - self._started:.2f} s")
        if answer.usage is not None:
            written = answer.usage.completion_tokens
            begun, tokens = (self._started, written) if self._first is None else (self._first, written - 1)
            rate = f" ({tokens / (end - begun):.1f}/s)" if tokens > 0 and end > begun else ""
            parts.insert(0, f"{answer.usage.prompt_tokens} tokens read, {written} written{rate}")
        parts.append(f"finish_reason {answer.choices[0].finish_reason}")
        return f"{'; '.join(parts)}; {answer.model} at {answer.endpoint}, request {answer.request_id}"


def printed_json(value: Any) -> None:
    """Print a value as JSON, for programs: indented for a person, else on one line."""
    indent = 2 if sys.stdout.isatty() else None
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()
