"""What `myllm.Client` answers, as DSPy's `Response` and stream events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dspy import lm15

import myllm
from myllm.types import ChatChunkChoice, TokenLogprob

from .requests import ChatCall

_FINISH: dict[str, lm15.FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
    "content_filter": "content_filter",
    "abort": "error",
    "error": "error",
}

StreamEvent = lm15.StreamStartEvent | lm15.StreamDeltaEvent | lm15.StreamEndEvent


def responses(answer: myllm.ChatCompletion, request: lm15.Request, call: ChatCall) -> list[lm15.Response]:
    """Return one response for each choice; the first carries the usage of the whole request, so that it is
    counted once."""
    body: dict[str, Any] = answer.raw
    if not isinstance(body, dict):  # one call took several requests (TGI's `n`)
        body = answer.model_dump(exclude_none=True)
    found = []
    for position, choice in enumerate(body["choices"]):
        own = {**body, "choices": [choice]}
        if position:
            own.pop("usage", None)
        response = lm15.response_from_openai_chat(
            own, model=request.model, choice=0, response_format=request.config.response_format
        )
        if _FINISH.get(choice.get("finish_reason") or "stop") == "error":
            response = replace(response, finish_reason="error")
        found.append(replace(response, adaptations=call.adaptations))
    return found


class EventWriter:
    """Writes the events of one stream: a start, what the chunks add, and an end."""

    def __init__(self, request: lm15.Request, call: ChatCall) -> None:
        self._model = request.model
        self._adaptations = call.adaptations
        self._started = False
        self._finish_reason: str | None = None
        self._usage: myllm.Usage | None = None
        self._tool = -1  # the tool call that fragments without an index belong to

    def chunk(self, chunk: myllm.ChatChunk) -> Iterator[StreamEvent]:
        """Yield the events of a chunk."""
        yield from self._start(chunk.id, chunk.model)
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            if choice.index == 0:
                yield from self._deltas(choice)

    def end(self) -> Iterator[StreamEvent]:
        """Yield the events that end the stream."""
        yield from self._start("", None)
        finish = None if self._finish_reason is None else _FINISH.get(self._finish_reason, "stop")
        yield lm15.StreamEndEvent(
            finish_reason=finish, usage=None if self._usage is None else _usage(self._usage)
        )

    def _start(self, id_: str, model: str | None) -> Iterator[StreamEvent]:
        if not self._started:
            self._started = True
            yield lm15.StreamStartEvent(
                id=id_ or None, model=model or self._model, adaptations=self._adaptations
            )

    def _deltas(self, choice: ChatChunkChoice) -> Iterator[StreamEvent]:
        delta = choice.delta
        if delta.reasoning:
            yield lm15.StreamDeltaEvent(delta=lm15.ThinkingDelta(text=delta.reasoning))
        scores = _logprobs(choice.logprobs.content) if choice.logprobs and choice.logprobs.content else ()
        if delta.content or scores:  # a token's score may come before its last byte, and so before its text
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=delta.content or "", logprobs=scores))
        for call in delta.tool_calls or ():
            if call.index is not None:
                self._tool = call.index
            elif call.id or self._tool < 0:
                self._tool += 1
            function = call.function
            yield lm15.StreamDeltaEvent(
                delta=lm15.ToolCallDelta(
                    input=function.arguments,
                    part_index=self._tool,
                    id=call.id or None,
                    name=function.name or None,
                )
            )
        self._finish_reason = choice.finish_reason or self._finish_reason


def _usage(usage: myllm.Usage) -> lm15.Usage:
    prompt, completion = usage.prompt_tokens_details or {}, usage.completion_tokens_details or {}
    return lm15.Usage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        cache_read_tokens=prompt.get("cached_tokens"),
        reasoning_tokens=completion.get("reasoning_tokens"),
    )


def _logprobs(tokens: list[TokenLogprob]) -> tuple[lm15.TokenLogprob, ...]:
    return tuple(
        lm15.TokenLogprob(
            token=token.token,
            logprob=token.logprob,
            bytes=None if token.bytes is None else tuple(token.bytes),
            token_id=token.token_id,
            top=tuple(
                lm15.TopLogprob(
                    token=top.token,
                    logprob=top.logprob,
                    bytes=None if top.bytes is None else tuple(top.bytes),
                    token_id=top.token_id,
                )
                for top in token.top_logprobs
            ),
        )
        for token in tokens
    )
