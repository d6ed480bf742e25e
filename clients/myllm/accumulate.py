"""What the chunks of a stream add up to."""

from __future__ import annotations

from typing import Any

from .types import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Logprobs,
    Message,
    ToolCall,
    Usage,
)
from .wire import Kind


class Accumulator:
    """Adds the chunks of one stream up to the answer that the same call would have had without streaming."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.id = ""
        self.created = 0
        self.model: str | None = None
        self.usage: Usage | None = None
        self._choices: dict[int, ChatChoice | CompletionChoice] = {}
        self._texts: dict[tuple[int, str], list[str]] = {}

    def add(self, chunk: ChatChunk | CompletionChunk) -> None:
        """Add one chunk."""
        self.id = chunk.id or self.id
        self.created = chunk.created or self.created
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        if isinstance(chunk, ChatChunk):
            for delta_choice in chunk.choices:
                chat = self._choices.get(delta_choice.index)
                if chat is None:
                    chat = self._choices[delta_choice.index] = ChatChoice(index=delta_choice.index)
                assert isinstance(chat, ChatChoice)
                delta = delta_choice.delta
                for name in ("content", "reasoning", "refusal"):
                    if (text := getattr(delta, name)) is not None:
                        self._texts.setdefault((chat.index, name), []).append(text)
                if delta.role:
                    chat.message.role = delta.role
                for call in delta.tool_calls or ():
                    _add_tool_call(chat.message, call)
                _add_end(chat, delta_choice)
        else:
            for part in chunk.choices:
                choice = self._choices.get(part.index)
                if choice is None:
                    choice = self._choices[part.index] = CompletionChoice(index=part.index)
                self._texts.setdefault((part.index, "text"), []).append(part.text)
                _add_end(choice, part)

    def result(self) -> ChatCompletion | Completion:
        """Return the answer as far as it has come."""
        for (index, name), parts in self._texts.items():
            choice = self._choices[index]
            setattr(choice.message if isinstance(choice, ChatChoice) else choice, name, "".join(parts))
        choices: list[Any] = [choice.model_copy(deep=True) for _, choice in sorted(self._choices.items())]
        cls = ChatCompletion if self.kind == "chat" else Completion
        return cls(id=self.id, created=self.created, model=self.model, usage=self.usage, choices=choices)


def _add_end(choice: ChatChoice | CompletionChoice, part: Any) -> None:
    if part.finish_reason is not None:
        choice.finish_reason = part.finish_reason
        if "stop_reason" in part.model_fields_set:  # None says that no stop string was it
            choice.stop_reason = part.stop_reason
    if part.logprobs is not None and part.logprobs.content:
        choice.logprobs = choice.logprobs or Logprobs(content=[])
        assert choice.logprobs.content is not None
        choice.logprobs.content.extend(part.logprobs.content)


def _add_tool_call(message: Message, part: ToolCall) -> None:
    message.tool_calls = message.tool_calls or []
    index = part.index if part.index is not None else len(message.tool_calls)
    call = next((c for c in message.tool_calls if c.index == index), None)
    if call is None:
        call = ToolCall(index=index)
        message.tool_calls.append(call)
    call.id = part.id or call.id
    call.type = part.type or call.type
    if part.function.name:
        call.function.name = (call.function.name or "") + part.function.name
    call.function.arguments += part.function.arguments
