"""Serve `POST /v1/chat/completions/batch`: vLLM's chat completions of many conversations in one request."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field, model_validator

from ..fields import refusal
from ..generation import Generation
from ..limits import check_room
from ..responses import json_response
from ..settings import Context, ServerContext
from .chat import choice
from .chat_request import ChatRequest
from .chunks import usage
from .conversation import Conversation
from .errors import OpenAIRoute
from .ids import answer_id
from .messages import Message
from .models import resolve_model

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])

_Turns = Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=4096)]


class BatchRequest(ChatRequest):
    """Ask for the next message of each of many conversations, all with the same parameters."""

    messages: Annotated[list[_Turns], Field(fail_fast=True)] = Field(  # type: ignore[assignment]
        min_length=1, max_length=128, description="Conversations, 128 at most."
    )

    @model_validator(mode="after")
    def _one_each(self) -> BatchRequest:
        if self.stream:
            raise refusal("A batch is not streamed: leave `stream` out", "stream")
        if (self.n or 1) > 1:
            raise refusal("A batch has one answer for each conversation: leave `n` out", "n")
        if self.prompt_logprobs is not None:
            raise refusal("`prompt_logprobs` are not available in a batch", "prompt_logprobs")
        return self

    def conversations(self) -> list[ChatRequest]:
        """Return a chat request for each conversation."""
        return [self.model_copy(update={"messages": messages}) for messages in self.messages]


@router.post("/v1/chat/completions/batch", summary="Answer in many conversations")
async def create_chat_completions(body: BatchRequest, context: Context, http: HttpRequest) -> Response:
    """Write the next message of every conversation: choice i is that of conversation i.

    They run side by side; if one of them fails, so does the request.
    """
    name = answer_id("chatcmpl", body.request_id, http)
    model = resolve_model(context, body.model)
    conversations = body.conversations()
    check_room(context, len(conversations))
    answers = await _all(
        [
            asyncio.create_task(_answer(index, conversation, context, http, f"{name}-{index}"))
            for index, conversation in enumerate(conversations)
        ]
    )
    return json_response(
        {
            "id": name,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [answer for answer, _ in answers],
            "usage": _total([generation for _, generation in answers]),
        }
    )


async def _answer(
    index: int, body: ChatRequest, context: ServerContext, http: HttpRequest, request_id: str
) -> tuple[dict[str, Any], Generation]:
    conversation = await Conversation.open(body, context, http, request_id)
    [reply] = await conversation.collect(http)
    return choice(conversation, index, reply, context.engine.tokenizer), conversation.generation


def _total(made: list[Generation]) -> dict[str, Any]:
    def total(name: str) -> int | None:
        counts = [getattr(generation, name) for generation in made]
        return None if None in counts else sum(counts)

    is_detailed = made[0].settings.enable_prompt_tokens_details
    return usage(
        sum(generation.prompt_tokens for generation in made),
        sum(generation.completion_tokens for generation in made),
        cached_tokens=total("cached_tokens") if is_detailed else None,
        reasoning_tokens=total("reasoning_tokens"),
    )


async def _all(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Return the results of all tasks; if one fails, the others end, too."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
