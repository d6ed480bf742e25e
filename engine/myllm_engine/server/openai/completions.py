"""Serve `POST /v1/completions`."""

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
from ..generation import Generation, encode
from ..responses import EventStream, json_response
from ..settings import Context, ServerContext
from .chunks import DONE, ChunkWriter, usage
from .errors import OpenAIRoute, event
from .logprobs import CompletionLogprobs, check_limit
from .models import resolve_model
from .protocol import CompletionRequest

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])

_DEFAULT_MAX_TOKENS = 16


@dataclass(slots=True)
class _Answer:
    """Hold what all parts of one answer share."""

    body: CompletionRequest
    context: ServerContext
    generation: Generation
    head: dict[str, Any]

    def prefix(self, index: int) -> str:
        """Return what the text of a choice begins with: its prompt, if it is to be echoed."""
        if not self.body.echo:
            return ""
        prompt = self.body.prompt[index // (self.body.n or 1)]
        return prompt if isinstance(prompt, str) else self.context.engine.tokenizer.decode(prompt)


@router.post("/v1/completions", summary="Complete a text")
async def create_completion(body: CompletionRequest, context: Context, http: HttpRequest) -> Response:
    """Continue one or more prompts; choice `i` continues prompt `i // n`."""
    model = resolve_model(context, body.model)
    check_limit(body.logprobs, context.settings.max_logprobs, "logprobs")
    params = body.sampling_params(
        max_tokens=_DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens, logprobs=body.logprobs
    )
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    encoded = iter(
        await encode(context, texts, http, add_special_tokens=body.add_special_tokens is not False)
    )
    requests = [
        Request(
            prompt_token_ids=next(encoded) if isinstance(prompt, str) else prompt,
            params=params,
            request_id=f"{answer_id}-{index}",
        )
        for index, prompt in enumerate(body.prompt)
    ]
    head = {"id": answer_id, "object": "text_completion", "created": int(time.time()), "model": model}
    generation = await Generation.open(context, requests, http)
    answer = _Answer(body, context, generation, head)
    if body.stream:
        return EventStream(_stream(answer), source=generation)
    return json_response(await _collect(answer, http))


async def _collect(answer: _Answer, http: HttpRequest) -> dict[str, Any]:
    completions = await answer.generation.collect(http)
    choices: list[dict[str, Any]] = []
    for completion in (sequence for sequences in completions for sequence in sequences):
        logprobs = None
        if answer.body.logprobs is not None:
            logprobs = CompletionLogprobs(answer.context.engine.tokenizer)(completion.logprobs)
        choices.append(
            {
                "index": len(choices),
                "text": answer.prefix(len(choices)) + completion.text,
                "logprobs": logprobs,
                "finish_reason": completion.finish_reason,
                "stop_reason": completion.stop_reason,
            }
        )
    generation = answer.generation
    counts = usage(generation.prompt_tokens, generation.completion_tokens)
    return {**answer.head, "choices": choices, "usage": counts}


async def _stream(answer: _Answer) -> AsyncGenerator[bytes, None]:
    body, generation = answer.body, answer.generation
    writer = ChunkWriter(
        answer.head, generation, include_usage=body.include_usage, continuous_usage=body.continuous_usage
    )
    n = body.n or 1
    logprobs = [CompletionLogprobs(answer.context.engine.tokenizer) for _ in range(n * len(body.prompt))]
    begun = [not body.echo] * len(logprobs)
    try:
        async for request_index, output in generation:
            for sequence in output.outputs:
                index = request_index * n + sequence.index
                text = sequence.text
                if not begun[index]:
                    text, begun[index] = answer.prefix(index) + text, True
                scores = logprobs[index](sequence.logprobs) if sequence.logprobs else None
                if text or scores or sequence.finish_reason:
                    yield writer.choice(
                        index,
                        b'"text":' + orjson.dumps(text),
                        logprobs=scores,
                        finish_reason=sequence.finish_reason,
                        stop_reason=sequence.stop_reason,
                    )
        yield writer.final() + DONE
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error)) + DONE
