"""Make a message from the deltas of a conversation: the object, and the events that tell how it grows.

Events: https://docs.anthropic.com/en/docs/build-with-claude/streaming.
"""

from __future__ import annotations

from typing import Any

import orjson

from ..generation import Generation
from ..openai.conversation import Delta

# What a delta of each type of block is called, and the field of it that holds the text.
_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def usage(generation: Generation) -> dict[str, int]:
    """Return the `usage` object: cached tokens stand apart from those that were read anew."""
    return {
        "input_tokens": generation.prompt_tokens - generation.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": generation.cached_tokens,
        "output_tokens": generation.completion_tokens,
    }


class MessageWriter:
    """Turn deltas into the blocks of a message, one after the other, and into events.

    Every method returns the events that it causes, encoded; whoever wants the object alone drops them.

    Attributes:
        message: the object as it stands.
    """

    def __init__(self, id_: str, model: str, *, shows_thinking: bool) -> None:
        self.message: dict[str, Any] = {
            "id": id_,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {},
        }
        self._shows_thinking = shows_thinking
        self._head = b""
        self._texts: list[str] = []
        self._last = Delta(0)

    def begin(self, generation: Generation) -> bytes:
        """Tell that the message begins."""
        self.message["usage"] = usage(generation)
        return _event("message_start", message=self.message)

    def add(self, delta: Delta) -> bytes:
        """Put what the model said next where it belongs."""
        self._last = delta
        events = []
        if delta.reasoning and self._shows_thinking:
            events += self._add({"type": "thinking", "thinking": "", "signature": ""}, delta.reasoning)
        if delta.text:
            events += self._add({"type": "text", "text": ""}, delta.text)
        for call in delta.tool_calls:
            if call.id is not None:
                events += self._open({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
            if call.arguments:
                events.append(self._more(call.arguments))
        return b"".join(events)

    def end(self, generation: Generation) -> bytes:
        """Complete the message."""
        content = self.message["content"]
        # There is a block even if it is empty: clients look at the first one.
        events = [] if content else self._open({"type": "text", "text": ""})
        events += self._close()
        reason, sequence = self._reason()
        self.message |= {"stop_reason": reason, "stop_sequence": sequence, "usage": usage(generation)}
        ending = {"stop_reason": reason, "stop_sequence": sequence}
        events.append(_event("message_delta", delta=ending, usage=self.message["usage"]))
        events.append(_event("message_stop"))
        return b"".join(events)

    def _reason(self) -> tuple[str, str | None]:
        if self._last.finish_reason == "length":
            return "max_tokens", None
        if any(block["type"] == "tool_use" for block in self.message["content"]):
            return "tool_use", None
        if isinstance(self._last.stop_reason, str):
            return "stop_sequence", self._last.stop_reason
        return "end_turn", None

    def _add(self, block: dict[str, Any], text: str) -> list[bytes]:
        content = self.message["content"]
        is_another = not content or content[-1]["type"] != block["type"]
        return [*(self._open(block) if is_another else ()), self._more(text)]

    def _open(self, block: dict[str, Any]) -> list[bytes]:
        """End the block that came before, and begin the next."""
        events = self._close()
        content = self.message["content"]
        content.append(block)
        index = len(content) - 1
        kind, field = _DELTAS[block["type"]]
        self._head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
            b'"delta":{"type":"%s","%s":' % (index, kind.encode(), field.encode())
        )
        events.append(_event("content_block_start", index=index, content_block=block))
        # Where Anthropic's own server sends its first one.
        return [*events, _event("ping")] if index == 0 else events

    def _more(self, text: str) -> bytes:
        self._texts.append(text)
        return b"".join((self._head, orjson.dumps(text), b"}}\n\n"))

    def _close(self) -> list[bytes]:
        content = self.message["content"]
        if not content:
            return []
        block, text = content[-1], "".join(self._texts)
        self._texts = []
        if block["type"] == "tool_use":
            block["input"] = _object(text)
        else:
            block[block["type"]] = text
        return [_event("content_block_stop", index=len(content) - 1)]


def _object(arguments: str) -> Any:
    """Return the arguments of a call; what the limit on tokens cut off is no JSON, and nobody may run it."""
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return {}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
