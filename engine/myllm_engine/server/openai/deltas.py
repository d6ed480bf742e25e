"""Hold what an answer gains, apart from how a dialect writes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...request import FinishReason, TokenLogprob

# "tool_calls": the model calls tools, and waits for what they return.
ChatFinishReason = FinishReason | Literal["tool_calls"]


@dataclass(slots=True)
class ToolCallDelta:
    """Carry what one tool call gained.

    Attributes:
        index: which call of the choice, from 0.
        id: on the call's first delta only; None afterwards.
        name: the function's; on the call's first delta only.
        arguments: a fragment of their JSON text.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class ToolCall:
    """Hold a whole tool call; `arguments` is their JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Delta:
    """Carry what one choice gained since its previous delta.

    Attributes:
        index: which of the request's `n` choices.
        text: new text of the answer; may be empty.
        reasoning: new text of what the model thinks before it answers; may be empty.
        tool_calls: what its tool calls gained.
        token_ids: new tokens.
        logprobs: of the new tokens; empty unless asked for.
        finish_reason: None while it runs.
        stop_reason: the stop string or stop token id; None otherwise.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Reply:
    """Hold one whole choice; the attributes are those of `Delta`, added up."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append what the choice gained."""
        self.text += delta.text
        self.reasoning += delta.reasoning
        for call in delta.tool_calls:
            if call.id is not None and call.name is not None:
                self.tool_calls.append(ToolCall(call.id, call.name))
            self.tool_calls[call.index].arguments += call.arguments
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
