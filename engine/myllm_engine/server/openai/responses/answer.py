"""Make responses: from a request and what it goes on from, by way of a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from fastapi import Request as HttpRequest
from starlette.types import Message as AsgiMessage

from ...errors import diagnose
from ...exchange import current
from ...settings import ServerContext
from ..chat_request import ChatRequest
from ..conversation import Conversation, render
from ..translation import chat_request, told_as
from .items import AnyItem, ItemReference
from .request import NAMES, ResponsePrompt
from .store import ResponseStore, Stored
from .writer import ResponseWriter


def resolve(body: ResponsePrompt, store: ResponseStore) -> tuple[list[AnyItem], list[AnyItem]]:
    """Return what the input goes on from, and the input with the items it refers to in place.

    Raises:
        ProblemError: what it names is not stored.
    """
    history: list[AnyItem] = []
    if body.previous_response_id is not None:
        history = store.get(body.previous_response_id, "previous_response_id").context()
    inputs = [store.item(item.id) if isinstance(item, ItemReference) else item for item in body.input]
    return history, inputs


async def prepare(
    body: ResponsePrompt, items: Sequence[AnyItem], context: ServerContext, http: HttpRequest
) -> ChatRequest:
    """Return the chat request whose answer is the response.

    With `truncation`: "auto" the oldest turns are left out until the rest fits into the context with the
    completion that may follow; the first messages of the system stay.

    Raises:
        RequestValidationError: a value that chat requests refuse.
        InvalidRequestError: the chat template refuses the messages.
    """
    chat = chat_request(body.chat_fields(items))
    if body.truncation != "auto":
        return chat
    messages = chat.messages
    kept = next((i for i, message in enumerate(messages) if message.role not in ("system", "developer")), 0)
    # A turn begins with what a user says: tool results never lose their calls.
    starts = [i for i in range(kept, len(messages)) if i == kept or messages[i].role == "user"]

    def without(turns: int) -> ChatRequest:
        return chat.model_copy(update={"messages": messages[:kept] + messages[starts[turns] :]})

    async def fits(turns: int) -> bool:
        prompt = await render(without(turns), context, http)
        return len(prompt) + (chat.completion_limit or 1) <= context.engine.max_model_len

    low, high = 0, len(starts) - 1
    while low < high:
        middle = (low + high) // 2
        if await fits(middle):
            high = middle
        else:
            low = middle + 1
    return without(low)


async def answer(conversation: Conversation, writer: ResponseWriter) -> AsyncGenerator[list[bytes], None]:
    """Write the response from its beginning to its end, and yield the events in portions."""
    yield writer.begin(conversation.generation)
    async with aclosing(conversation.deltas()) as deltas:
        async for delta in deltas:
            if events := writer.add(delta):
                yield events
    yield writer.end(conversation.generation)


async def answer_alone(stored: Stored, chat: ChatRequest, context: ServerContext, http: HttpRequest) -> None:
    """Make a stored response that no client waits for; `http` is the request that asked for it."""
    detached = HttpRequest(http.scope, _never)
    exchange = current.get()
    if exchange is not None:
        # The time limit is of those who wait.
        current.set(replace(exchange, deadline=None))
    try:
        with told_as(NAMES):
            conversation = await Conversation.open(chat, context, detached, stored.id)
        try:
            async with aclosing(answer(conversation, stored.writer)) as portions:
                async for events in portions:
                    stored.tell(events)
        finally:
            await conversation.aclose()
    except Exception as error:  # noqa: BLE001 - a boundary: every failure is told to those who ask later
        stored.tell(stored.writer.fail(diagnose(error)))


async def _never() -> AsgiMessage:
    """Wait for a message of a client that is not there."""
    await asyncio.Event().wait()
    raise AssertionError
