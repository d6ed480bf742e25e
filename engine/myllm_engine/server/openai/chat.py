"""Serve `POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ...tokenizer import Tokenizer
from ..errors import diagnose
from ..responses import EventStream, json_response
from ..settings import Context
from .chat_request import ChatRequest
from .chunks import DONE, ChunkWriter, usage
from .conversation import Conversation
from .errors import OpenAIRoute, event
from .logprobs import chat_logprobs, prompt_logprobs

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", summary="Answer in a conversation")
async def create_chat_completion(body: ChatRequest, context: Context, http: HttpRequest) -> Response:
    """Write the next message of a conversation, rendered by the model's chat template."""
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    conversation = await Conversation.open(body, context, http, answer_id)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    head = {"id": answer_id, "object": kind, "created": int(time.time()), "model": conversation.model}
    tokenizer = context.engine.tokenizer
    if body.stream:
        return EventStream(_stream(conversation, head, tokenizer), source=conversation)
    return json_response(await _collect(conversation, head, tokenizer, http))


async def _collect(
    conversation: Conversation, head: dict[str, Any], tokenizer: Tokenizer, http: HttpRequest
) -> dict[str, Any]:
    body, generation = conversation.body, conversation.generation
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": reply.text, "refusal": None},
            "logprobs": chat_logprobs(tokenizer, reply.logprobs) if body.logprobs else None,
            "finish_reason": reply.finish_reason,
            "stop_reason": reply.stop_reason,
        }
        for index, reply in enumerate(await conversation.collect(http))
    ]
    counts = usage(generation.prompt_tokens, generation.completion_tokens)
    prompt: dict[str, Any] = {}
    if body.prompt_logprobs is not None:
        prompt["prompt_logprobs"] = prompt_logprobs(tokenizer, generation.prompt_logprobs[0] or [])
    return {**head, "choices": choices, "usage": counts, **prompt}


async def _stream(
    conversation: Conversation, head: dict[str, Any], tokenizer: Tokenizer
) -> AsyncGenerator[bytes, None]:
    body = conversation.body
    writer = ChunkWriter(
        head,
        conversation.generation,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
    )
    try:
        for index in range(body.n or 1):
            yield writer.choice(index, b'"delta":{"role":"assistant","content":""}')
        async for delta in conversation.deltas():
            scores = chat_logprobs(tokenizer, delta.logprobs) if delta.logprobs else None
            if delta.text or scores or delta.finish_reason:
                yield writer.choice(
                    delta.index,
                    b'"delta":{"content":' + orjson.dumps(delta.text) + b"}",
                    logprobs=scores,
                    finish_reason=delta.finish_reason,
                    stop_reason=delta.stop_reason,
                )
        yield writer.final() + DONE
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error)) + DONE
