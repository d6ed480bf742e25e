"""Take a request of TGI's through the engine."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request as HttpRequest

from ...errors import InvalidRequestError
from ...request import Request
from ..errors import invalid
from ..generation import Completion, Generation, encode
from ..settings import ServerContext
from . import details
from .errors import incomplete
from .plan import Plan, check_length, plan
from .protocol import GenerateRequest


@dataclass(slots=True)
class Job:
    """Hold a request under way.

    Attributes:
        body: what was asked.
        context: of the server.
        plan: the request as the engine knows it.
        generation: what makes the text.
        received: when it came, by `time.monotonic`.
        queued: when it was handed to the engine.
    """

    body: GenerateRequest
    context: ServerContext
    plan: Plan
    generation: Generation
    received: float
    queued: float

    @classmethod
    async def open(
        cls, body: GenerateRequest, context: ServerContext, http: HttpRequest, *, stream: bool = False
    ) -> Job:
        """Check a request, submit it and wait for its first output.

        Raises:
            InvalidRequestError, ProblemError: the request cannot be served.
            QueueFullError, EngineDeadError: from the engine.
            ClientDisconnectedError: the client left first; nothing runs any more.
        """
        received = time.monotonic()
        planned = plan(body, context, stream=stream)
        [token_ids] = await encode(context, [body.inputs], http)
        if body.params.truncate is not None:
            token_ids = token_ids[-body.params.truncate :]
        check_length(context, len(token_ids), planned.sampling.max_tokens)
        request = Request(
            prompt_token_ids=token_ids,
            params=planned.sampling,
            request_id=f"tgi-{uuid.uuid4().hex}",
            lora=body.params.adapter_id,
        )
        queued = time.monotonic()
        try:
            generation = await Generation.open(context, [request], http, stream=stream)
        except InvalidRequestError as error:
            if error.param == "grammar":
                raise invalid(f"grammar is not valid: {error}", "grammar") from error
            raise
        return cls(body, context, planned, generation, received, queued)

    @property
    def prefix(self) -> str:
        """Return what the generated text begins with."""
        return self.body.inputs if self.body.params.return_full_text else ""

    async def collect(self, http: HttpRequest) -> Result:
        """Return the text when it has ended.

        Raises:
            ProblemError: it was broken off.
            ClientDisconnectedError: the client left first; nothing runs any more.
        """
        [completions] = await self.generation.collect(http)
        if any(details.finish_reason(completion) is None for completion in completions):
            raise incomplete(stream=False)
        best = max(range(len(completions)), key=lambda index: _mean_logprob(completions[index]))
        return Result(self, completions, best)

    async def aclose(self) -> None:
        """Abort what still runs."""
        await self.generation.aclose()


@dataclass(slots=True)
class Result:
    """Hold the text, or the several of which one is the best.

    Attributes:
        job: what made it.
        completions: as many as `best_of`.
        best: the index of the best.
        ended: when the last one was complete, by `time.monotonic`.
    """

    job: Job
    completions: list[Completion]
    best: int
    ended: float = field(default_factory=time.monotonic)

    @property
    def text(self) -> str:
        """Return the generated text."""
        return self.job.prefix + self.completions[self.best].text

    def answer(self) -> dict[str, Any]:
        """Return TGI's answer."""
        params = self.job.body.params
        answer: dict[str, Any] = {"generated_text": self.text}
        if params.details or params.decoder_input_details:
            prefill = self._prefill()
            answer["details"] = self._details(self.best, prefill)
            if len(self.completions) > 1:
                answer["details"]["best_of_sequences"] = [
                    {"generated_text": self.job.prefix + other.text, **self._details(index, prefill)}
                    for index, other in enumerate(self.completions)
                    if index != self.best
                ]
        return answer

    def headers(self) -> dict[str, str]:
        """Return what TGI tells in headers: times in ms, and sizes."""
        job, tokens = self.job, len(self.completions[self.best].token_ids)
        timings = job.generation.timings
        started = job.queued if timings is None or timings.scheduled is None else timings.scheduled
        inference = self.ended - started
        return {
            **compute_headers(job.body, job.context),
            "x-compute-time": f"{self.ended - job.received:.9f}",
            "x-total-time": _milliseconds(self.ended - job.received),
            "x-validation-time": _milliseconds(job.queued - job.received),
            "x-queue-time": _milliseconds(started - job.queued),
            "x-inference-time": _milliseconds(inference),
            "x-time-per-token": _milliseconds(inference / max(1, tokens)),
            "x-prompt-tokens": str(job.generation.prompt_tokens),
            "x-generated-tokens": str(tokens),
        }

    def _prefill(self) -> list[dict[str, Any]]:
        [request], [scores] = self.job.generation.requests, self.job.generation.prompt_logprobs
        if scores is None:
            return []
        return details.prefill(self.job.context.engine.tokenizer, request.prompt_token_ids, scores)

    def _details(self, index: int, prefill: list[dict[str, Any]]) -> dict[str, Any]:
        return details.details(
            self.job.context.engine.tokenizer,
            self.completions[index],
            seed=self.job.plan.seed_of(index),
            prefill=prefill,
            top=bool(self.job.plan.sampling.logprobs),
        )


def compute_headers(body: GenerateRequest, context: ServerContext) -> dict[str, str]:
    """Return the headers that are known before there is a text."""
    return {
        "x-compute-type": context.engine.device.partition(":")[0],
        "x-compute-characters": str(len(body.inputs)),
    }


def _mean_logprob(completion: Completion) -> float:
    # TGI's measure for `best_of`: per token, so that a long answer does not lose by its length
    # (router/src/infer/mod.rs, `generate_best_of`).
    return sum(score.logprob for score in completion.logprobs) / max(1, len(completion.logprobs))


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
