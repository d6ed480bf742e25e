"""Serve `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ..errors import diagnose
from ..generation import until_disconnect
from ..openai.conversation import Conversation, render
from ..openai.models import resolve_model
from ..openai.translation import chat_request, told_as
from ..responses import EventStream, json_response
from ..settings import Context
from .errors import AnthropicRoute, event
from .request import NAMES, MessagesPrompt, MessagesRequest
from .writer import MessageWriter

router = APIRouter(route_class=AnthropicRoute, tags=["Anthropic"])


@router.post("/v1/messages", summary="Write the next message")
async def create_message(body: MessagesRequest, context: Context, http: HttpRequest) -> Response:
    """Write the next message of a conversation, as an object or as events."""
    message_id = f"msg_{uuid.uuid4().hex}"
    with told_as(NAMES):
        # Clients for Claude send a budget in any case: without a parser there are no thoughts to limit.
        budget = body.thinking_budget if context.settings.reasoning_parser is not None else None
        chat = chat_request({**body.chat_fields(), "thinking_token_budget": budget})
        conversation = await Conversation.open(chat, context, http, message_id)
    writer = MessageWriter(message_id, conversation.model, shows_thinking=body.shows_thinking)
    headers = {"request-id": message_id}
    if body.stream:
        return EventStream(_stream(conversation, writer), source=conversation, headers=headers)

    async def write() -> None:
        async with aclosing(_write(conversation, writer)) as events:
            async for _ in events:
                pass  # the object is wanted, not the events

    try:
        await until_disconnect(http, write())
    finally:
        await conversation.aclose()
    return json_response(writer.message, headers=headers)


@router.post("/v1/messages/count_tokens", summary="Count the tokens of a prompt")
async def count_tokens(body: MessagesPrompt, context: Context, http: HttpRequest) -> Response:
    """Count the tokens of the prompt that a message would have, its tools and system text included."""
    resolve_model(context, body.model)
    with told_as(NAMES):
        prompt = await render(chat_request(body.chat_fields()), context, http)
    return json_response({"input_tokens": len(prompt)})


async def _write(conversation: Conversation, writer: MessageWriter) -> AsyncGenerator[bytes, None]:
    yield writer.begin(conversation.generation)
    async with aclosing(conversation.deltas()) as deltas:
        async for delta in deltas:
            if events := writer.add(delta):
                yield events
    yield writer.end(conversation.generation)


async def _stream(conversation: Conversation, writer: MessageWriter) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_write(conversation, writer)) as events:
            async for portion in events:
                yield portion
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error))
