"""Serve `/v1/responses` and what is below it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, Query, Response
from fastapi import Request as HttpRequest

from ...errors import diagnose, invalid
from ...generation import until_disconnect
from ...responses import EventStream, json_response
from ...settings import Context
from ..conversation import Conversation, render
from ..errors import OpenAIRoute
from ..models import resolve_model
from ..translation import told_as
from .answer import answer, answer_alone, prepare, resolve
from .request import NAMES, ResponsePrompt, ResponseRequest
from .store import ResponseStore, Stored
from .writer import ResponseWriter, new_response

router = APIRouter(route_class=OpenAIRoute, prefix="/v1/responses", tags=["OpenAI"])


async def get_store(request: HttpRequest) -> ResponseStore:
    """Return the stored responses of the application that serves `request`."""
    store: ResponseStore = request.app.state.responses
    return store


Store = Annotated[ResponseStore, Depends(get_store)]


@router.post("", summary="Make a response")
async def create_response(
    body: ResponseRequest, context: Context, store: Store, http: HttpRequest
) -> Response:
    """Answer a conversation of items: with an object, with events, or in the background."""
    if not store.capacity:
        _refuse_storing(body)
    model = resolve_model(context, body.model)
    history, inputs = resolve(body, store)
    with told_as(NAMES):
        chat = await prepare(body, [*history, *inputs], context, http)
    is_stored = store.capacity > 0 and body.store is not False
    id_ = body.request_id or f"resp_{uuid.uuid4().hex}"
    if id_ in store:
        raise invalid(f"There is a response of the id {id_!r} already", "request_id")
    response = new_response(body, id_=id_, model=model, stored=is_stored)
    _check_echo(response)
    writer = ResponseWriter(
        response, context.engine.tokenizer, show_reasoning=body.include_reasoning is not False
    )
    stored = Stored(writer, history, inputs, events=[] if body.background and body.stream else None)
    if body.background:
        store.add(stored)
        stored.tell(writer.queue())
        stored.task = asyncio.create_task(answer_alone(stored, chat, context, http))
        return _follow(stored) if body.stream else json_response(response)

    with told_as(NAMES):
        conversation = await Conversation.open(chat, context, http, stored.id, stream=bool(body.stream))
    if body.stream:
        return EventStream(_stream(conversation, stored, store if is_stored else None), source=conversation)
    try:
        await until_disconnect(http, _write(conversation, writer))
    finally:
        await conversation.aclose()
    if is_stored:
        store.add(stored)
    return json_response(response)


def _refuse_storing(body: ResponseRequest) -> None:
    """Refuse what only a server that stores responses can do."""
    for name in ("background", "previous_response_id", "store"):
        if getattr(body, name):
            raise invalid(
                f"`{name}` needs stored responses, and this server stores none (--max-stored-responses 0): "
                "send the conversation's items in `input`",
                name,
            )


def _check_echo(response: dict[str, Any]) -> None:
    """Refuse what Python reads from JSON and nobody can write there: the response repeats what was asked."""
    try:
        orjson.dumps(response)
    except TypeError as error:
        raise invalid(f"The request holds a value that the response cannot repeat: {error}") from error


async def _write(conversation: Conversation, writer: ResponseWriter) -> None:
    async with aclosing(answer(conversation, writer)) as portions:
        async for _ in portions:
            pass  # the object is wanted, not the events


async def _stream(
    conversation: Conversation, stored: Stored, store: ResponseStore | None
) -> AsyncGenerator[bytes, None]:
    writer = stored.writer
    try:
        async with aclosing(answer(conversation, writer)) as portions:
            async for events in portions:
                if writer.is_final and store is not None:  # before the client knows, who may go on at once
                    store.add(stored)
                yield b"".join(events)
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        events = writer.fail(diagnose(error))
        if store is not None:
            store.add(stored)
        yield b"".join(events)


def _follow(stored: Stored, after: int = -1) -> Response:
    events = stored.follow(after)
    return EventStream(events, source=events)


@router.post("/input_tokens", summary="Count the tokens of a response's input")
async def count_input_tokens(
    body: ResponsePrompt, context: Context, store: Store, http: HttpRequest
) -> Response:
    """Count the tokens of the prompt that a response would have, its tools and instructions included."""
    resolve_model(context, body.model)
    history, inputs = resolve(body, store)
    with told_as(NAMES):
        chat = await prepare(body, [*history, *inputs], context, http)
        count = len(await render(chat, context, http))
    return json_response({"object": "response.input_tokens", "input_tokens": count})


@router.get("/{response_id}", summary="Get a stored response")
async def get_response(
    response_id: str,
    store: Store,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, description="Number of the last event that is known.")] = -1,
) -> Response:
    """Return a stored response as it stands, or the events of one that was asked for with both
    `background` and `stream`.
    """
    stored = store.get(response_id)
    if not stream:
        return json_response(stored.response)
    if stored.events is None:
        raise invalid(
            "Events are kept of responses only that were asked for with `background` and `stream`", "stream"
        )
    return _follow(stored, starting_after)


@router.get("/{response_id}/input_items", summary="List a stored response's input")
async def list_input_items(
    response_id: str,
    store: Store,
    after: Annotated[str | None, Query(description="Id of the last item that is known.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
) -> Response:
    """List the items of a stored response's conversation, its own output left out; newest first."""
    stored = store.get(response_id)
    items = [*stored.history, *stored.inputs]
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [place for place, item in enumerate(items) if item.id == after]
        if not places:
            raise invalid(f"`after` is {after[:100]!r}, which is no item of this response", "after")
        items = items[places[0] + 1 :]
    page: list[dict[str, Any]] = [item.model_dump(exclude_none=True) for item in items[:limit]]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


@router.post("/{response_id}/cancel", summary="Cancel a response that is made in the background")
async def cancel_response(response_id: str, store: Store) -> Response:
    """Stop making a response. One that has ended is returned as it is."""
    stored = store.get(response_id)
    if stored.task is None:
        raise invalid("Only responses that were asked for with `background` can be cancelled", "response_id")
    await stored.cancel()
    return json_response(stored.response)


@router.delete("/{response_id}", summary="Delete a stored response")
async def delete_response(response_id: str, store: Store) -> Response:
    """Keep a response no longer; stop making it, too."""
    stored = store.get(response_id)
    store.discard(stored)
    await stored.cancel()
    return json_response({"id": stored.id, "object": "response", "deleted": True})
