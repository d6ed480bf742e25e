"""Serve `POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ...request import Request
from ..errors import diagnose
from ..generation import Generation, encode, until_disconnect
from ..responses import EventStream, json_response
from ..settings import Context, ServerContext
from .chunks import DONE, ChunkWriter, usage
from .errors import OpenAIRoute, event
from .logprobs import chat_logprobs, check_limit, prompt_logprobs
from .models import resolve_model
from .protocol import ChatRequest

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])


@dataclass(slots=True)
class _Answer:
    """Hold what all parts of one answer share."""

    body: ChatRequest
    context: ServerContext
    generation: Generation
    head: dict[str, Any]


@router.post("/v1/chat/completions", summary="Answer in a conversation")
async def create_chat_completion(body: ChatRequest, context: Context, http: HttpRequest) -> Response:
    """Write the next message of a conversation, rendered by the model's chat template."""
    model = resolve_model(context, body.model)
    check_limit(body.top_logprobs, context.settings.max_logprobs, "top_logprobs")
    check_limit(body.prompt_logprobs, context.settings.max_logprobs, "prompt_logprobs")
    params = body.sampling_params(
        max_tokens=body.completion_limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None
    )
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    token_ids = await _render(body, context, http)
    request = Request(
        prompt_token_ids=token_ids,
        params=params,
        request_id=answer_id,
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
    )
    head = {"id": answer_id, "object": "chat.completion", "created": int(time.time()), "model": model}
    generation = await Generation.open(context, [request], http)
    answer = _Answer(body, context, generation, head)
    if body.stream:
        head["object"] = "chat.completion.chunk"
        return EventStream(_stream(answer), source=generation)
    return json_response(await _collect(answer, http))


async def _render(body: ChatRequest, context: ServerContext, http: HttpRequest) -> list[int]:
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


async def _collect(answer: _Answer, http: HttpRequest) -> dict[str, Any]:
    [completions] = await answer.generation.collect(http)
    tokenizer = answer.context.engine.tokenizer
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": chat_logprobs(tokenizer, completion.logprobs) if answer.body.logprobs else None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        for index, completion in enumerate(completions)
    ]
    generation = answer.generation
    counts = usage(generation.prompt_tokens, generation.completion_tokens)
    prompt: dict[str, Any] = {}
    if answer.body.prompt_logprobs is not None:
        prompt["prompt_logprobs"] = prompt_logprobs(tokenizer, generation.prompt_logprobs[0] or [])
    return {**answer.head, "choices": choices, "usage": counts, **prompt}


async def _stream(answer: _Answer) -> AsyncGenerator[bytes, None]:
    body, generation = answer.body, answer.generation
    tokenizer = answer.context.engine.tokenizer
    writer = ChunkWriter(
        answer.head, generation, include_usage=body.include_usage, continuous_usage=body.continuous_usage
    )
    try:
        for index in range(body.n or 1):
            yield writer.choice(index, b'"delta":{"role":"assistant","content":""}')
        async for _, output in generation:
            for sequence in output.outputs:
                scores = chat_logprobs(tokenizer, sequence.logprobs) if sequence.logprobs else None
                if sequence.text or scores or sequence.finish_reason:
                    yield writer.choice(
                        sequence.index,
                        b'"delta":{"content":' + orjson.dumps(sequence.text) + b"}",
                        logprobs=scores,
                        finish_reason=sequence.finish_reason,
                        stop_reason=sequence.stop_reason,
                    )
        yield writer.final() + DONE
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error)) + DONE
