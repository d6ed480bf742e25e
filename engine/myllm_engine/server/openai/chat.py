"""Serve `POST /v1/chat/completions`."""

from __future__ import annotations

import time
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
from .chunks import DONE, ChunkWriter, prompt_fields, totals
from .conversation import Conversation
from .errors import OpenAIRoute, event
from .ids import answer_id
from .logprobs import chat_logprobs

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", summary="Answer in a conversation")
async def create_chat_completion(body: ChatRequest, context: Context, http: HttpRequest) -> Response:
    """Write the next message of a conversation, rendered by the model's chat template."""
    name = answer_id("chatcmpl", body.request_id, http)
    conversation = await Conversation.open(body, context, http, name)
    kind = "chat.completion.chunk" if body.stream else "chat.completion"
    head = {"id": name, "object": kind, "created": int(time.time()), "model": conversation.model}
    tokenizer = context.engine.tokenizer
    if body.stream:
        return EventStream(_stream(conversation, head, tokenizer), source=conversation)
    return json_response(await _collect(conversation, head, tokenizer, http))


async def _collect(
    conversation: Conversation, head: dict[str, Any], tokenizer: Tokenizer, http: HttpRequest
) -> dict[str, Any]:
    body, generation = conversation.body, conversation.generation
    as_ids = body.tokens_as_ids(generation.settings)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": reply.text, "refusal": None},
            "logprobs": chat_logprobs(tokenizer, reply.logprobs, as_ids=as_ids) if body.logprobs else None,
            "finish_reason": reply.finish_reason,
            "stop_reason": reply.stop_reason,
            **({"token_ids": reply.token_ids} if body.return_token_ids else {}),
        }
        for index, reply in enumerate(await conversation.collect(http))
    ]
    prompt = prompt_fields(body, generation, tokenizer)
    return {**head, "choices": choices, **totals(generation), **prompt}


async def _stream(
    conversation: Conversation, head: dict[str, Any], tokenizer: Tokenizer
) -> AsyncGenerator[bytes, None]:
    body = conversation.body
    as_ids = body.tokens_as_ids(conversation.generation.settings)
    writer = ChunkWriter(
        head,
        conversation.generation,
        include_usage=body.include_usage,
        continuous_usage=body.continuous_usage,
    )
    try:
        for index in range(body.n or 1):
            prompt = prompt_fields(body, conversation.generation, tokenizer)
            yield writer.choice(index, b'"delta":{"role":"assistant","content":""}', more=prompt)
        async for delta in conversation.deltas():
            scores = chat_logprobs(tokenizer, delta.logprobs, as_ids=as_ids) if delta.logprobs else None
            tokens = b',"token_ids":' + orjson.dumps(delta.token_ids) if body.return_token_ids else b""
            if delta.text or scores or delta.finish_reason or tokens:
                yield writer.choice(
                    delta.index,
                    b'"delta":{"content":' + orjson.dumps(delta.text) + b"}" + tokens,
                    logprobs=scores,
                    finish_reason=delta.finish_reason,
                    stop_reason=delta.stop_reason,
                )
        yield writer.final() + DONE
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error)) + DONE
