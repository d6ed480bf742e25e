"""Serve `POST /generate`, `POST /generate_stream` and `POST /`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ...request import TokenLogprob
from ..errors import ClientDisconnectedError, diagnose, invalid
from ..generation import Completion
from ..responses import EventStream, json_response
from ..settings import Context, ServerContext
from ..text import TokenTexts
from . import details
from .errors import TGIRoute, event, incomplete
from .job import Job, compute_headers
from .protocol import GenerateRequest

router = APIRouter(route_class=TGIRoute, tags=["TGI"])


@router.post("/generate", summary="Continue a text")
async def generate(body: GenerateRequest, context: Context, http: HttpRequest) -> Response:
    """Continue a text."""
    if body.stream:
        raise invalid("`stream` has no effect here: ask /generate_stream for a stream", "stream")
    result = await (await Job.open(body, context, http)).collect(http)
    return json_response(result.answer(), headers=result.headers())


@router.post("/generate_stream", summary="Continue a text, as a stream of tokens")
async def generate_stream(body: GenerateRequest, context: Context, http: HttpRequest) -> Response:
    """Continue a text, one event per token; the last one has the whole text.

    As in TGI, whatever goes wrong once the body is read comes as an event, with the status 200.
    """
    if body.stream is False:
        raise invalid("`stream` has no effect here: ask /generate for a plain answer", "stream")
    return await _stream_response(body, context, http)


@router.post("/", summary="Continue a text, as a stream or not")
async def compat_generate(body: GenerateRequest, context: Context, http: HttpRequest) -> Response:
    """Continue a text, as `stream` says; the plain answer is a list of one.

    The text begins with the prompt unless `return_full_text` is false: the rule of the hosted inference API
    for text generation, which this route stands in for.
    """
    request = body.defaulting(return_full_text=True)
    if body.stream:
        return await _stream_response(request, context, http)
    result = await (await Job.open(request, context, http)).collect(http)
    return json_response([result.answer()], headers=result.headers())


async def _stream_response(body: GenerateRequest, context: ServerContext, http: HttpRequest) -> Response:
    headers = compute_headers(body, context)
    try:
        job = await Job.open(body, context, http, stream=True)
    except ClientDisconnectedError:
        raise
    except Exception as error:  # noqa: BLE001 - a boundary: clients read the stream only, not the status
        problem = diagnose(error)
        headers |= problem.headers
        return Response(event(problem), headers=headers, media_type=EventStream.media_type)
    return EventStream(_stream(job), source=job.generation, headers=headers)


async def _stream(job: Job) -> AsyncGenerator[bytes, None]:
    texts = TokenTexts(job.context.engine.tokenizer)
    completion = Completion()
    count = 0
    try:
        async for _, output in job.generation:
            [sequence] = output.outputs
            completion.add(sequence)
            if sequence.finish_reason == "abort":
                raise incomplete(stream=True)
            new = sequence.logprobs or []
            for score, text in zip(new, texts(score.token_id for score in new), strict=True):
                count += 1
                last = sequence.finish_reason is not None and count == len(completion.token_ids)
                content = _token_event(job, score, text, count, completion if last else None)
                yield b"data:" + orjson.dumps(content) + b"\n\n"
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error))


def _token_event(
    job: Job, score: TokenLogprob, text: str, index: int, ended: Completion | None
) -> dict[str, Any]:
    """Return the event of one token; `ended` is the whole text, with its last one."""
    tokenizer = job.context.engine.tokenizer
    content: dict[str, Any] = {"index": index, "token": details.token(tokenizer, score, text)}
    if job.plan.sampling.logprobs:
        content["top_tokens"] = details.top_tokens(tokenizer, score)
    content["generated_text"] = content["details"] = None
    if ended is not None:
        content["generated_text"] = job.prefix + ended.text
        if job.body.params.details:
            content["details"] = {
                "finish_reason": details.finish_reason(ended),
                "generated_tokens": len(ended.token_ids),
                "seed": job.plan.seed,
                "input_length": job.generation.prompt_tokens,
            }
    return content
