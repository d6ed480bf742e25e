"""Make a response from the deltas of a conversation: the object, and the events that tell how it grows."""

from __future__ import annotations

import time
from typing import Any

from ....tokenizer import Tokenizer
from ...errors import Kind, Problem
from ...generation import Generation
from ..conversation import Delta
from ..logprobs import chat_logprobs
from .events import Events
from .output import FunctionCallItem, MessageItem, OutputItem, ReasoningItem
from .request import ResponseRequest

_FINAL = frozenset({"completed", "incomplete", "failed", "cancelled"})

# The codes of `openai/types/responses/response_error.py` that fit; everything else is "server_error".
_CODES = {Kind.INVALID: "invalid_prompt", Kind.OVERLOADED: "rate_limit_exceeded"}


def new_response(body: ResponseRequest, *, id_: str, model: str, stored: bool) -> dict[str, Any]:
    """Return the response before anything is made of it: what was asked, in OpenAI's words."""
    tools = [tool.model_dump() for tool in body.tools or []]
    choice = body.tool_choice or "auto"
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    return {
        "id": id_,
        "object": "response",
        "created_at": int(time.time()),
        "status": "queued" if body.background else "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


class ResponseWriter:
    """Turn deltas into the items of a response, one after the other, and into events.

    Every method returns the events that it causes, each encoded; whoever wants the object alone drops them.

    Attributes:
        response: the object as it stands.
    """

    def __init__(self, response: dict[str, Any], tokenizer: Tokenizer, *, show_reasoning: bool) -> None:
        self.response = response
        self._tokenizer = tokenizer
        self._show_reasoning = show_reasoning
        self._events = Events()
        self._item: OutputItem | None = None
        self._logprobs: list[dict[str, Any]] = []
        self._finish_reason: str | None = None

    @property
    def is_final(self) -> bool:
        """Tell whether nothing more comes."""
        return self.response["status"] in _FINAL

    def queue(self) -> list[bytes]:
        """Tell that the response will be made."""
        return [self._state("response.created"), self._state("response.queued")]

    def begin(self, generation: Generation) -> list[bytes]:
        """Tell that the response is being made."""
        is_known = self.response["status"] == "queued"
        params = generation.requests[0].params
        self.response |= {"status": "in_progress", "temperature": params.temperature, "top_p": params.top_p}
        kinds = ("response.in_progress",) if is_known else ("response.created", "response.in_progress")
        return [self._state(kind) for kind in kinds]

    def add(self, delta: Delta) -> list[bytes]:
        """Put what the model said next where it belongs."""
        events: list[bytes] = []
        self._finish_reason = delta.finish_reason
        if delta.reasoning and self._show_reasoning:
            events += self._add_reasoning(delta.reasoning)
        if delta.logprobs and not (delta.reasoning or delta.tool_calls):
            self._logprobs += chat_logprobs(self._tokenizer, delta.logprobs)["content"]
        if delta.text:
            events += self._say(delta.text)
        for call in delta.tool_calls:
            if call.id is not None and call.name is not None:
                events += self._open(
                    FunctionCallItem(self._events, len(self.response["output"]), call.id, call.name)
                )
            if call.arguments and self._item is not None:
                events.append(self._item.add(call.arguments))
        return events

    def end(self, generation: Generation) -> list[bytes]:
        """Complete the response."""
        cut = self._finish_reason == "length"
        status = "incomplete" if cut else "completed"
        events: list[bytes] = []
        if not self.response["output"] or (self._logprobs and isinstance(self._item, MessageItem)):
            # There is a message even if it is empty, and the last token's log-probability may come alone.
            events += self._say("")
        events += self._close(status)
        self.response |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "usage": self._usage(generation),
        }
        return [*events, self._state(f"response.{status}")]

    def fail(self, problem: Problem) -> list[bytes]:
        """Tell that nothing more comes, and why."""
        error = {"code": _CODES.get(problem.kind, "server_error"), "message": problem.message}
        events = self._close("incomplete")
        self.response |= {"status": "failed", "error": error}
        return [*events, self._state("response.failed")]

    def cancel(self) -> list[bytes]:
        """Tell that the client wants no more of it; OpenAI has no event of that name."""
        events = self._close("incomplete")
        self.response["status"] = "cancelled"
        return [*events, self._state("response.incomplete")]

    def _add_reasoning(self, text: str) -> list[bytes]:
        events = []
        if not isinstance(self._item, ReasoningItem):
            events = self._open(ReasoningItem(self._events, len(self.response["output"])))
        assert self._item is not None
        return [*events, self._item.add(text)]

    def _say(self, text: str) -> list[bytes]:
        events = []
        if not isinstance(self._item, MessageItem):
            events = self._open(MessageItem(self._events, len(self.response["output"])))
        assert isinstance(self._item, MessageItem)
        logprobs, self._logprobs = self._logprobs, []
        return [*events, self._item.say(text, logprobs)] if text or logprobs else events

    def _open(self, item: OutputItem) -> list[bytes]:
        """End the item that came before, and begin the next."""
        events = self._close("completed")
        self._item = item
        self.response["output"].append(item.item)
        return [*events, *item.open()]

    def _close(self, status: str) -> list[bytes]:
        item, self._item = self._item, None
        return [] if item is None else item.close(status)

    def _state(self, kind: str) -> bytes:
        return self._events.event(kind, {"response": self.response})

    def _usage(self, generation: Generation) -> dict[str, Any]:
        prompt, completion = generation.prompt_tokens, generation.completion_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": generation.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": generation.reasoning_tokens or 0},
            "total_tokens": prompt + completion,
        }
