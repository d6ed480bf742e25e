"""Serve `POST /v1/completions`."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ...request import Request, TokenLogprob
from ..errors import diagnose
from ..generation import Generation, encode
from ..responses import EventStream, json_response
from ..sampling_defaults import with_defaults
from ..settings import Context, ServerContext
from .chunks import DONE, ChunkWriter, prompt_fields, totals
from .completion_request import CompletionRequest
from .errors import OpenAIRoute, event
from .ids import answer_id, engine_id
from .logprobs import CompletionLogprobs, check_limit
from .models import lora_of, resolve_model

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])

_DEFAULT_MAX_TOKENS = 16


@dataclass(slots=True)
class _Answer:
    """Hold what all choices of one answer share."""

    body: CompletionRequest
    context: ServerContext
    generation: Generation
    head: dict[str, Any]

    def choices(self) -> list[_Choice]:
        """Return what writes the choices; `n` of them belong to each prompt."""
        n = self.body.n or 1
        return [_Choice(self, prompt) for prompt in range(len(self.body.prompt)) for _ in range(n)]


class _Choice:
    """Write one choice piece by piece; the first piece begins with the prompt where that is to be echoed."""

    def __init__(self, answer: _Answer, prompt: int) -> None:
        self._answer = answer
        self._prompt = prompt
        self._begun = False
        self._logprobs = CompletionLogprobs(
            answer.context.engine.tokenizer, as_ids=answer.body.tokens_as_ids(answer.context.settings)
        )

    def piece(
        self, text: str, token_ids: list[int], logprobs: Sequence[TokenLogprob]
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the fields of a choice that what is new makes, and its `logprobs`."""
        body, fields = self._answer.body, {"text": text}
        if body.return_token_ids:
            fields["token_ids"] = token_ids
        if not self._begun:
            self._begun = True
            tokenizer = self._answer.context.engine.tokenizer
            fields |= prompt_fields(body, self._answer.generation, tokenizer, self._prompt)
            if body.echo:
                fields["text"] = self._echo() + text
        scores = None if body.logprobs is None else self._logprobs(logprobs)
        return fields, scores if scores and scores["tokens"] else None

    def _echo(self) -> str:
        """Return the text of the prompt, whose log-probabilities then come first."""
        generation = self._answer.generation
        token_ids = generation.requests[self._prompt].prompt_token_ids
        scores = generation.prompt_logprobs[self._prompt]
        if scores is not None:
            self._logprobs.begin(token_ids, scores, top=self._answer.body.logprobs)
        prompt = self._answer.body.prompt[self._prompt]
        if isinstance(prompt, str) and self._answer.body.truncate_prompt_tokens is None:
            return prompt
        return self._answer.context.engine.tokenizer.decode(token_ids, skip_special_tokens=False)


@router.post("/v1/completions", summary="Complete a text")
async def create_completion(body: CompletionRequest, context: Context, http: HttpRequest) -> Response:
    """Continue one or more prompts; choice `i` continues prompt `i // n`."""
    body = with_defaults(body, context.sampling_defaults)
    model = resolve_model(context, body.model)
    check_limit(body.logprobs, context.settings.max_logprobs, "logprobs")
    check_limit(body.prompt_logprobs, context.settings.max_logprobs, "prompt_logprobs")
    max_tokens = _DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    params = body.sampling_params(max_tokens=max_tokens, logprobs=body.logprobs)
    name = answer_id("cmpl", body.request_id, http)
    texts = [prompt for prompt in body.prompt if isinstance(prompt, str)]
    encoded = iter(
        await encode(context, texts, http, add_special_tokens=body.add_special_tokens is not False)
    )
    requests = [
        Request(
            prompt_token_ids=body.truncate(
                next(encoded) if isinstance(prompt, str) else prompt, context, max_tokens
            ),
            params=params,
            request_id=engine_id(name, index),
            priority=body.priority or 0,
            lora=lora_of(context, model),
            cache_salt=body.cache_salt,
        )
        for index, prompt in enumerate(body.prompt)
    ]
    head = {"id": name, "object": "text_completion", "created": int(time.time()), "model": model}
    generation = await Generation.open(
        context, requests, http, interval=body.stream_interval, stream=bool(body.stream)
    )
    answer = _Answer(body, context, generation, head)
    if body.stream:
        return EventStream(_stream(answer), source=generation)
    return json_response(await _collect(answer, http))


async def _collect(answer: _Answer, http: HttpRequest) -> dict[str, Any]:
    completions = await answer.generation.collect(http)
    choices: list[dict[str, Any]] = []
    sequences = (sequence for sequences in completions for sequence in sequences)
    for choice, sequence in zip(answer.choices(), sequences, strict=True):
        fields, logprobs = choice.piece(sequence.text, sequence.token_ids, sequence.logprobs)
        choices.append(
            {
                "index": len(choices),
                **fields,
                "logprobs": logprobs,
                "finish_reason": sequence.finish_reason,
                "stop_reason": sequence.stop_reason,
            }
        )
    return {**answer.head, "choices": choices, **totals(answer.generation)}


async def _stream(answer: _Answer) -> AsyncGenerator[bytes, None]:
    body, generation = answer.body, answer.generation
    writer = ChunkWriter(
        answer.head, generation, include_usage=body.include_usage, continuous_usage=body.continuous_usage
    )
    n = body.n or 1
    choices = answer.choices()
    try:
        async for request_index, output in generation:
            for sequence in output.outputs:
                index = request_index * n + sequence.index
                fields, logprobs = choices[index].piece(
                    sequence.text, sequence.token_ids, sequence.logprobs or ()
                )
                if fields["text"] or sequence.finish_reason or logprobs or len(fields) > 1:
                    yield writer.choice(
                        index,
                        orjson.dumps(fields)[1:-1],
                        logprobs=logprobs,
                        finish_reason=sequence.finish_reason,
                        stop_reason=sequence.stop_reason,
                    )
        yield writer.final() + DONE
    except Exception as error:  # noqa: BLE001 - the status is sent: the failure goes into the stream
        yield event(diagnose(error)) + DONE
