"""Make the items of a response's output from what the model says, and the events that tell of them."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from typing import Any

import orjson

from .events import Events


class OutputItem(ABC):
    """Be one item of the output, from its announcement to its end.

    Class attributes:
        delta: the event that brings more of its text.

    Attributes:
        item: as it stands in the response.
    """

    delta: str

    def __init__(self, events: Events, index: int, item: dict[str, Any], part: dict[str, Any] | None) -> None:
        self.item = item
        self._events = events
        self._index = index
        self._part = part
        self._place = {"item_id": item["id"], "output_index": index}
        if part is not None:
            self._place["content_index"] = 0
        self._head = events.head(self.delta, self._place)
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """Return what has come so far."""
        return "".join(self._texts)

    def open(self) -> list[bytes]:
        """Return the events that announce it."""
        events = [self._tell("response.output_item.added", output_index=self._index, item=self.item)]
        if self._part is not None:
            events.append(self._tell("response.content_part.added", **self._place, part=self._part))
        return events

    def add(self, text: str, rest: bytes = b"") -> bytes:
        """Return the event for more of its text; `rest` are further fields of it."""
        self._texts.append(text)
        return self._events.delta(self._head, text, rest)

    def close(self, status: str) -> list[bytes]:
        """Put the text into the item and return the events that end it."""
        self.item["status"] = status
        events = [self._tell(self.delta.removesuffix("delta") + "done", **self._place, **self._done())]
        if self._part is not None:
            self.item["content"].append(self._part)
            events.append(self._tell("response.content_part.done", **self._place, part=self._part))
        events.append(self._tell("response.output_item.done", output_index=self._index, item=self.item))
        return events

    @abstractmethod
    def _done(self) -> dict[str, Any]:
        """Complete the item, or its part; return what the event has that ends the text."""

    def _tell(self, kind: str, **fields: Any) -> bytes:
        return self._events.event(kind, fields)


class MessageItem(OutputItem):
    """Hold what the model says."""

    delta = "response.output_text.delta"

    def __init__(self, events: Events, index: int) -> None:
        item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "status": "in_progress"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        super().__init__(events, index, {**item, "role": "assistant", "content": []}, part)
        self._logprobs: list[dict[str, Any]] = []

    def say(self, text: str, logprobs: list[dict[str, Any]]) -> bytes:
        """Return the event for more of its text, with the log-probabilities of its tokens."""
        self._logprobs += logprobs
        return self.add(text, b',"logprobs":' + (orjson.dumps(logprobs) if logprobs else b"[]"))

    def _done(self) -> dict[str, Any]:
        done = {"text": self.text, "logprobs": self._logprobs}
        self._part = {**self._part, **done} if self._part else None
        return done


class ReasoningItem(OutputItem):
    """Hold what the model thinks."""

    delta = "response.reasoning_text.delta"

    def __init__(self, events: Events, index: int) -> None:
        item = {"id": f"rs_{uuid.uuid4().hex}", "type": "reasoning", "status": "in_progress"}
        part = {"type": "reasoning_text", "text": ""}
        super().__init__(events, index, {**item, "summary": [], "content": []}, part)

    def _done(self) -> dict[str, Any]:
        self._part = {"type": "reasoning_text", "text": self.text}
        return {"text": self.text}


class FunctionCallItem(OutputItem):
    """Hold a call that the model makes."""

    delta = "response.function_call_arguments.delta"

    def __init__(self, events: Events, index: int, call_id: str, name: str) -> None:
        item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "in_progress"}
        super().__init__(events, index, {**item, "call_id": call_id, "name": name, "arguments": ""}, None)

    def _done(self) -> dict[str, Any]:
        self.item["arguments"] = self.text
        return {"name": self.item["name"], "arguments": self.text}
