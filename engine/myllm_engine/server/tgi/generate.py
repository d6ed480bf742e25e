"""Serve `POST /generate`, `POST /generate_stream` and `POST /`."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ...request import Request, TokenLogprob
from ...tokenizer import Tokenizer
from ..errors import diagnose, invalid
from ..generation import Completion, Generation, encode
from ..responses import EventStream, json_response
from ..settings import Context, ServerContext
from ..text import TokenTexts
from .errors import TGIRoute, event
from .protocol import CompatRequest, GenerateRequest, Plan, check_length, plan

router = APIRouter(route_class=TGIRoute, tags=["TGI"])


@dataclass(slots=True)
class _Job:
    """Hold a request under way."""

    body: GenerateRequest
    context: ServerContext
    plan: Plan
    prompt: str
    generation: Generation
    received: float
    validated: float

    @property
    def tokenizer(self) -> Tokenizer:
        return self.context.engine.tokenizer

    @property
    def details(self) -> bool:
        return bool(self.body.params.details)

    @property
    def prefix(self) -> str:
        """Return what the generated text begins with."""
        return self.prompt if self.body.params.return_full_text else ""

    def headers(self) -> dict[str, str]:
        return {
            "x-compute-type": self.context.engine.device.partition(":")[0],
            "x-compute-characters": str(len(self.prompt)),
        }


@router.post("/generate", summary="Continue a text")
async def generate(body: GenerateRequest, context: Context, http: HttpRequest) -> Response:
    """Continue a text."""
    job = await _open(body, context, http, stream=False)
    return await _answer(job, http)


@router.post("/generate_stream", summary="Continue a text, as a stream of tokens")
async def generate_stream(body: GenerateRequest, context: Context, http: HttpRequest) -> Response:
    """Continue a text, one event per token; the last one has the whole text."""
    job = await _open(body, context, http, stream=True)
    return EventStream(_stream(job), source=job.generation, headers=job.headers())


@router.post("/", summary="Continue a text, as a stream or not")
async def compat_generate(body: CompatRequest, context: Context, http: HttpRequest) -> Response:
    """Continue a text, as `stream` says; the plain answer is a list of one.

    The text begins with the prompt unless `return_full_text` is false: the rule of the hosted inference API
    for text generation, which this route stands in for.
    """
    if body.params.return_full_text is None:
        parameters = body.params.model_copy(update={"return_full_text": True})
        # Absent parameters mean sampling, and must go on meaning it.
        if body.parameters is None:
            parameters = parameters.model_copy(update={"do_sample": True})
        body = body.model_copy(update={"parameters": parameters})
    job = await _open(body, context, http, stream=bool(body.stream))
    if body.stream:
        return EventStream(_stream(job), source=job.generation, headers=job.headers())
    return await _answer(job, http, as_list=True)


async def _open(body: GenerateRequest, context: ServerContext, http: HttpRequest, *, stream: bool) -> _Job:
    received = time.monotonic()
    engine = context.engine
    planned = plan(body, context.settings, max_model_len=engine.max_model_len, stream=stream)
    if not body.inputs:
        raise invalid("`inputs` cannot be empty", "inputs")
    prompt = body.inputs
    [token_ids] = await encode(context, [prompt], http)
    truncate = body.params.truncate
    if truncate is not None and truncate < len(token_ids):
        token_ids = token_ids[-truncate:]
        prompt = engine.tokenizer.decode(token_ids, skip_special_tokens=False)
    check_length(len(token_ids), planned.sampling.max_tokens, engine.max_model_len)
    request = Request(
        prompt_token_ids=token_ids, params=planned.sampling, request_id=f"tgi-{uuid.uuid4().hex}"
    )
    validated = time.monotonic()
    generation = await Generation.open(context, [request], http)
    return _Job(body, context, planned, prompt, generation, received, validated)


async def _answer(job: _Job, http: HttpRequest, *, as_list: bool = False) -> Response:
    [completions] = await job.generation.collect(http)
    best_index = max(range(len(completions)), key=lambda index: _mean_logprob(completions[index]))
    best = completions[best_index]
    answer: dict[str, Any] = {"generated_text": job.prefix + best.text}
    if job.details:
        answer["details"] = _details(job, best, best_index)
        if len(completions) > 1:
            answer["details"]["best_of_sequences"] = [
                {"generated_text": job.prefix + other.text, **_details(job, other, index)}
                for index, other in enumerate(completions)
                if index != best_index
            ]
    now = time.monotonic()
    headers = {
        **job.headers(),
        "x-compute-time": f"{now - job.received:.9f}",
        "x-total-time": _milliseconds(now - job.received),
        "x-validation-time": _milliseconds(job.validated - job.received),
        "x-prompt-tokens": str(job.generation.prompt_tokens),
        "x-generated-tokens": str(len(best.token_ids)),
    }
    return json_response([answer] if as_list else answer, headers=headers)


async def _stream(job: _Job) -> AsyncGenerator[bytes, None]:
    texts = TokenTexts(job.tokenizer)
    completion = Completion()
    count = 0
    try:
        async for _, output in job.generation:
            [sequence] = output.outputs
            completion.add(sequence)
            new = sequence.logprobs or []
            for token, text in zip(new, texts(t.token_id for t in new), strict=True):
                count += 1
                last = sequence.finish_reason is not None and count == len(completion.token_ids)
                yield (
                    b"data:" + orjson.dumps(_token_event(job, token, text, count, completion, last)) + b"\n\n"
                )
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error))


def _token_event(
    job: _Job, token: TokenLogprob, text: str, index: int, completion: Completion, last: bool
) -> dict[str, Any]:
    content: dict[str, Any] = {"index": index, "token": _token(job.tokenizer, token, text)}
    if job.plan.sampling.logprobs:
        content["top_tokens"] = _top_tokens(job.tokenizer, token)
    content["generated_text"] = job.prefix + completion.text if last else None
    content["details"] = None
    if last and job.details:
        content["details"] = {
            "finish_reason": _finish_reason(completion),
            "generated_tokens": len(completion.token_ids),
            "seed": job.plan.seed,
            "input_length": job.generation.prompt_tokens,
        }
    return content


def _details(job: _Job, completion: Completion, index: int) -> dict[str, Any]:
    pieces = TokenTexts(job.tokenizer)(completion.token_ids)
    details: dict[str, Any] = {
        "finish_reason": _finish_reason(completion),
        "generated_tokens": len(completion.token_ids),
        # Sequence i of a request samples with seed + i.
        "seed": None if job.plan.seed is None else job.plan.seed + index,
        "prefill": [],
        "tokens": [
            _token(job.tokenizer, token, piece)
            for token, piece in zip(completion.logprobs, pieces, strict=True)
        ],
    }
    if job.plan.sampling.logprobs:
        details["top_tokens"] = [_top_tokens(job.tokenizer, token) for token in completion.logprobs]
    return details


def _token(tokenizer: Tokenizer, token: TokenLogprob, text: str) -> dict[str, Any]:
    return {
        "id": token.token_id,
        "text": text,
        "logprob": token.logprob,
        "special": tokenizer.is_special(token.token_id),
    }


def _top_tokens(tokenizer: Tokenizer, token: TokenLogprob) -> list[dict[str, Any]]:
    return [
        {
            "id": token_id,
            "text": tokenizer.token_text(token_id),
            "logprob": logprob,
            "special": tokenizer.is_special(token_id),
        }
        for token_id, logprob in token.top
    ]


def _finish_reason(completion: Completion) -> str | None:
    if completion.finish_reason != "stop":
        return completion.finish_reason
    return "eos_token" if completion.stop_reason is None else "stop_sequence"


def _mean_logprob(completion: Completion) -> float:
    # TGI's measure for `best_of`: per token, so that a long answer does not lose by its length
    # (router/src/infer/mod.rs, `generate_best_of`).
    return sum(token.logprob for token in completion.logprobs) / max(1, len(completion.logprobs))


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
