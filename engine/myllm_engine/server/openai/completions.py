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
from .completion_request import CompletionRequest
from .errors import OpenAIRoute, event
from .logprobs import CompletionLogprobs, check_limit, prompt_logprobs
from .models import resolve_model

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

    def logprobs(self, index: int) -> CompletionLogprobs:
        """Return what writes the log-probabilities of a choice, beginning with those of an echoed prompt."""
        request = index // (self.body.n or 1)
        writer = CompletionLogprobs(self.context.engine.tokenizer)
        scores = self.generation.prompt_logprobs[request]
        if self.body.echo and scores is not None:
            writer.begin(self.generation.requests[request].prompt_token_ids, scores)
        return writer


@router.post("/v1/completions", summary="Complete a text")
async def create_completion(body: CompletionRequest, context: Context, http: HttpRequest) -> Response:
    """Continue one or more prompts; choice `i` continues prompt `i // n`."""
    model = resolve_model(context, body.model)
    check_limit(body.logprobs, context.settings.max_logprobs, "logprobs")
    check_limit(body.prompt_logprobs, context.settings.max_logprobs, "prompt_logprobs")
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
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
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
            logprobs = answer.logprobs(len(choices))(completion.logprobs)
        prompt: dict[str, Any] = {}
        if answer.body.prompt_logprobs is not None:
            scores = answer.generation.prompt_logprobs[len(choices) // (answer.body.n or 1)]
            prompt["prompt_logprobs"] = prompt_logprobs(answer.context.engine.tokenizer, scores or [])
        choices.append(
            {
                **prompt,
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
    logprobs: dict[int, CompletionLogprobs] = {}
    begun = [not body.echo] * (n * len(body.prompt))
    try:
        async for request_index, output in generation:
            for sequence in output.outputs:
                index = request_index * n + sequence.index
                text = sequence.text
                if not begun[index]:
                    text, begun[index] = answer.prefix(index) + text, True
                scores = None
                if sequence.logprobs:
                    if index not in logprobs:
                        logprobs[index] = answer.logprobs(index)
                    scores = logprobs[index](sequence.logprobs)
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
