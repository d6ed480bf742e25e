"""Serve TGI's `/vertex`: prompts and conversations in the envelope of Google's Vertex AI."""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Discriminator, Field, Tag

from ..errors import InvalidRequestError
from .errors import ProblemError, invalid
from .fields import StrictModel
from .openai.chat_request import ChatRequest
from .openai.conversation import Conversation
from .responses import json_response
from .settings import Context, ServerContext
from .tgi.errors import TGIRoute, template_error
from .tgi.job import Job
from .tgi.protocol import GenerateRequest

router = APIRouter(route_class=TGIRoute, tags=["TGI"])


def _kind(instance: Any) -> str:
    messages = instance.get("messages") if isinstance(instance, dict) else getattr(instance, "messages", None)
    return "generate" if messages is None else "chat"


Instance = Annotated[
    Annotated[GenerateRequest, Tag("generate")] | Annotated[ChatRequest, Tag("chat")], Discriminator(_kind)
]


class VertexRequest(StrictModel):
    """Ask for texts: each instance is a body of `/generate` or of `/v1/chat/completions`."""

    instances: list[Instance] = Field(min_length=1)


@router.post("/vertex", summary="Continue texts and conversations (Vertex AI)")
async def vertex(body: VertexRequest, context: Context, http: HttpRequest) -> Response:
    """Return `{"predictions"}`, a text for each instance; prompts are sampled unless they say otherwise."""
    limit = context.settings.max_client_batch_size
    if len(body.instances) > limit:
        raise invalid(f"Number of prompts exceeds the maximum allowed batch size of {limit}", "instances")
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(aclosing(await _open(instance, context, http)))
            for instance in body.instances
        ]
        return json_response({"predictions": [await _text(item, http) for item in running]})


async def _open(
    instance: GenerateRequest | ChatRequest, context: ServerContext, http: HttpRequest
) -> Job | Conversation:
    if isinstance(instance, GenerateRequest):
        return await Job.open(instance.defaulting(do_sample=True), context, http)
    if instance.stream or (instance.n or 1) > 1 or instance.tool_use is not None:
        raise invalid(
            "an instance is answered with one text: for `stream`, `n` and `tools` use /v1/chat/completions",
            "instances",
        )
    try:
        return await Conversation.open(instance, context, http)
    except ProblemError as error:
        cause = error.__cause__  # a prompt that is too long is told as a fault of `messages`, too
        if isinstance(cause, InvalidRequestError) and cause.param == "messages":
            raise template_error(str(cause)) from cause
        raise


async def _text(running: Job | Conversation, http: HttpRequest) -> str:
    if isinstance(running, Job):
        return (await running.collect(http)).text
    [reply] = await running.collect(http)
    return reply.text
