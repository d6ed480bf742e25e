"""Answer a conversation: what chat completions, and the APIs that are built like them, have in common.

A dialect reads its body into a `ChatRequest`, opens a `Conversation`, and writes the `Delta`s of a stream or
the `Reply`s of a whole answer in its own shape.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Literal

from fastapi import Request as HttpRequest

from ...request import FinishReason, Request, TokenLogprob
from ..generation import Generation, encode, until_disconnect
from ..settings import ServerContext
from .chat_request import ChatRequest
from .logprobs import check_limit
from .models import resolve_model

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


class Conversation:
    """Iterate over the deltas of an answer; open it with `open`, and close it with `aclose` in every case.

    Attributes:
        body: what was asked.
        model: the name to answer with.
        generation: what makes the text; counts its tokens.
    """

    def __init__(self, body: ChatRequest, model: str, generation: Generation) -> None:
        self.body = body
        self.model = model
        self.generation = generation

    @classmethod
    async def open(
        cls, body: ChatRequest, context: ServerContext, http: HttpRequest, request_id: str | None = None
    ) -> Conversation:
        """Render the conversation, submit it and wait for the first output.

        Raises:
            InvalidRequestError, ProblemError: the request cannot be served.
            QueueFullError, EngineDeadError: from the engine.
            ClientDisconnectedError: the client left first; nothing runs any more.
        """
        model = resolve_model(context, body.model)
        check_limit(body.top_logprobs, context.settings.max_logprobs, "top_logprobs")
        check_limit(body.prompt_logprobs, context.settings.max_logprobs, "prompt_logprobs")
        params = body.sampling_params(
            max_tokens=body.completion_limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None
        )
        request = Request(
            prompt_token_ids=await render(body, context, http),
            params=params,
            request_id=request_id or uuid.uuid4().hex,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
        )
        return cls(body, model, await Generation.open(context, [request], http))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield what the choices gain, as it comes."""
        async for _, output in self.generation:
            for sequence in output.outputs:
                yield Delta(
                    sequence.index,
                    sequence.text,
                    token_ids=sequence.token_ids,
                    logprobs=sequence.logprobs or [],
                    finish_reason=sequence.finish_reason,
                    stop_reason=sequence.stop_reason,
                )

    async def collect(self, http: HttpRequest) -> list[Reply]:
        """Return the choices when all have ended, and close."""
        replies = [Reply() for _ in range(self.body.n or 1)]

        async def gather() -> None:
            async for delta in self.deltas():
                replies[delta.index].add(delta)

        try:
            await until_disconnect(http, gather())
        finally:
            await self.aclose()
        return replies

    async def aclose(self) -> None:
        """Abort what still runs."""
        await self.generation.aclose()


async def render(body: ChatRequest, context: ServerContext, http: HttpRequest) -> list[int]:
    """Return the token ids of a conversation's prompt.

    Raises:
        InvalidRequestError: there is no chat template, or it refuses the messages.
        ClientDisconnectedError: the client left first.
    """
    # Templates are programs: a slow one must not hold up the streams of others.
    rendering = context.readers.run(
        context.engine.tokenizer.render_chat,
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        **(body.chat_template_kwargs or {}),
    )
    prompt = await until_disconnect(http, rendering)
    # The template writes the special tokens itself.
    [token_ids] = await encode(context, [prompt], http, add_special_tokens=bool(body.add_special_tokens))
    return token_ids
