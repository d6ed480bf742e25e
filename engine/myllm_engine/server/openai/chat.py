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
from .deltas import Delta, Reply, ToolCallDelta
from .errors import OpenAIRoute, event
from .ids import answer_id
from .logprobs import chat_logprobs

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])


@router.post("/v1/chat/completions", summary="Answer in a conversation")
async def create_chat_completion(body: ChatRequest, context: Context, http: HttpRequest) -> Response:
    """Write the next message of a conversation, rendered by the model's chat template."""
    name = answer_id("chatcmpl", body.request_id, http)
    conversation = await Conversation.open(body, context, http, name, stream=bool(body.stream))
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
    replies = await conversation.collect(http)
    choices = [choice(conversation, index, reply, tokenizer) for index, reply in enumerate(replies)]
    prompt = prompt_fields(body, generation, tokenizer)
    return {**head, "choices": choices, **totals(generation), **prompt}


def choice(conversation: Conversation, index: int, reply: Reply, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return one choice of a whole answer."""
    body = conversation.body
    as_ids = body.tokens_as_ids(conversation.generation.settings)
    return {
        "index": index,
        "message": _message(conversation, reply),
        "logprobs": chat_logprobs(tokenizer, reply.logprobs, as_ids=as_ids) if body.logprobs else None,
        "finish_reason": _finish_reason(body, reply.finish_reason),
        "stop_reason": reply.stop_reason,
        **({"token_ids": reply.token_ids} if body.return_token_ids else {}),
    }


def _message(conversation: Conversation, reply: Reply) -> dict[str, Any]:
    body = conversation.body
    text = _echoed(conversation) + reply.text
    # Null, as in OpenAI's answers, where the message is something else than its text.
    content = None if not text and (reply.tool_calls or reply.reasoning) else text
    message: dict[str, Any] = {"role": conversation.role, "content": content, "refusal": None}
    if conversation.form.reasons and body.include_reasoning is not False:
        message["reasoning"] = message["reasoning_content"] = reply.reasoning or None
    calls = [{"name": call.name, "arguments": call.arguments} for call in reply.tool_calls]
    if calls and body.functions:
        message["function_call"] = calls[0]
    elif calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": function}
            for call, function in zip(reply.tool_calls, calls, strict=True)
        ]
    return message


def _echoed(conversation: Conversation) -> str:
    """Return what an answer begins with: the last message, if it is to be echoed and of the answer's role."""
    last = conversation.body.messages[-1]
    return last.text if conversation.body.echo and last.role == conversation.role else ""


def _finish_reason(body: ChatRequest, reason: str | None) -> str | None:
    return "function_call" if reason == "tool_calls" and body.functions else reason


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
    opening = b'"delta":' + orjson.dumps({"role": conversation.role, "content": ""})
    try:
        for index in range(body.n or 1):
            yield writer.choice(index, opening, more=prompt_fields(body, conversation.generation, tokenizer))
            if echoed := _echoed(conversation):
                yield writer.choice(index, b'"delta":' + orjson.dumps({"content": echoed}))
        async for delta in conversation.deltas():
            scores = chat_logprobs(tokenizer, delta.logprobs, as_ids=as_ids) if delta.logprobs else None
            tokens = b',"token_ids":' + orjson.dumps(delta.token_ids) if body.return_token_ids else b""
            content = _delta(delta, body)
            if content or scores or delta.finish_reason or tokens:
                if not content and delta.finish_reason != "tool_calls":
                    content = {"content": ""}
                yield writer.choice(
                    delta.index,
                    b'"delta":' + orjson.dumps(content) + tokens,
                    logprobs=scores,
                    finish_reason=_finish_reason(body, delta.finish_reason),
                    stop_reason=delta.stop_reason,
                )
        yield writer.final() + DONE
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error)) + DONE


def _delta(delta: Delta, body: ChatRequest) -> dict[str, Any]:
    """Return a chunk's `delta`, which is empty when nothing can be shown yet."""
    shown: dict[str, Any] = {}
    if delta.text:
        shown["content"] = delta.text
    if delta.reasoning and body.include_reasoning is not False:
        shown["reasoning"] = shown["reasoning_content"] = delta.reasoning
    if delta.tool_calls and body.functions:
        shown["function_call"] = _function(delta.tool_calls[0])
    elif delta.tool_calls:
        shown["tool_calls"] = [_tool_call(call) for call in delta.tool_calls]
    return shown


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    own = {} if call.id is None else {"id": call.id, "type": "function"}
    return {"index": call.index, **own, "function": _function(call)}


def _function(call: ToolCallDelta) -> dict[str, Any]:
    name = {} if call.name is None else {"name": call.name}
    return {**name, "arguments": call.arguments}
