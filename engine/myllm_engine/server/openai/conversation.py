"""Answer a conversation: what chat completions, and the APIs that are built like them, have in common.

A dialect reads its body into a `ChatRequest`, opens a `Conversation`, and writes the `Delta`s of a stream or
the `Reply`s of a whole answer in its own shape.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request as HttpRequest

from ...request import FinishReason, Request, TokenLogprob
from ..generation import Generation, encode, until_disconnect
from ..settings import ServerContext
from .chat_request import ChatRequest
from .logprobs import check_limit
from .models import resolve_model
from .vision import check_sight, expand_images

if TYPE_CHECKING:
    from ...models.vision import ImageInputs


@dataclass(slots=True)
class Delta:
    """Carry what one choice gained since its previous delta.

    Attributes:
        index: which of the request's `n` choices.
        text: new text of the answer; may be empty.
        token_ids: new tokens.
        logprobs: of the new tokens; empty unless asked for.
        finish_reason: None while it runs.
        stop_reason: the stop string or stop token id; None otherwise.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Reply:
    """Hold one whole choice; the attributes are those of `Delta`, added up."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def add(self, delta: Delta) -> None:
        """Append what the choice gained."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


class Conversation:
    """Iterate over the deltas of an answer; open it with `open`, and close it with `aclose` in every case.

    Attributes:
        body: what was asked.
        model: the name to answer with.
        generation: what makes the text; counts its tokens.
    """

    def __init__(self, body: ChatRequest, model: str, generation: Generation) -> None:
        self.body = body
        self.model = model
        self.generation = generation

    @classmethod
    async def open(
        cls, body: ChatRequest, context: ServerContext, http: HttpRequest, request_id: str | None = None
    ) -> Conversation:
        """Render the conversation, submit it and wait for the first output.

        Raises:
            InvalidRequestError, ProblemError: the request cannot be served.
            QueueFullError, EngineDeadError: from the engine.
            ClientDisconnectedError: the client left first; nothing runs any more.
        """
        model = resolve_model(context, body.model)
        check_limit(body.top_logprobs, context.settings.max_logprobs, "top_logprobs")
        check_limit(body.prompt_logprobs, context.settings.max_logprobs, "prompt_logprobs")
        params = body.sampling_params(
            max_tokens=body.completion_limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None
        )
        token_ids, images = await read_prompt(body, context, http)
        request = Request(
            prompt_token_ids=token_ids,
            images=images,
            params=params,
            request_id=request_id or uuid.uuid4().hex,
            priority=body.priority or 0,
            cache_salt=body.cache_salt,
        )
        return cls(body, model, await Generation.open(context, [request], http))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield what the choices gain, as it comes."""
        async for _, output in self.generation:
            for sequence in output.outputs:
                yield Delta(
                    sequence.index,
                    sequence.text,
                    sequence.token_ids,
                    sequence.logprobs or [],
                    sequence.finish_reason,
                    sequence.stop_reason,
                )

    async def collect(self, http: HttpRequest) -> list[Reply]:
        """Return the choices when all have ended, and close."""
        replies = [Reply() for _ in range(self.body.n or 1)]

        async def gather() -> None:
            async for delta in self.deltas():
                replies[delta.index].add(delta)

        try:
            await until_disconnect(http, gather())
        finally:
            await self.aclose()
        return replies

    async def aclose(self) -> None:
        """Abort what still runs."""
        await self.generation.aclose()


async def render(body: ChatRequest, context: ServerContext, http: HttpRequest) -> list[int]:
    """Return the token ids of a conversation's prompt; see `read_prompt`."""
    return (await read_prompt(body, context, http))[0]


async def read_prompt(
    body: ChatRequest, context: ServerContext, http: HttpRequest
) -> tuple[list[int], ImageInputs | None]:
    """Return the token ids of a conversation's prompt, and what the model sees in it.

    Raises:
        InvalidRequestError: there is no chat template, or it refuses the messages; an image cannot be read,
            or the model sees none.
        ClientDisconnectedError: the client left first.
    """
    check_sight(body.messages, context)
    # Templates are programs: a slow one must not hold up the streams of others.
    rendering = context.readers.run(
        context.engine.tokenizer.render_chat,
        [message.for_template() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        **(body.chat_template_kwargs or {}),
    )
    prompt = await until_disconnect(http, rendering)
    expanded = await expand_images(body.messages, prompt, context, http)
    if expanded is not None:
        prompt = expanded.text
    # The template writes the special tokens itself.
    [token_ids] = await encode(context, [prompt], http, add_special_tokens=bool(body.add_special_tokens))
    return token_ids, None if expanded is None else expanded.inputs(token_ids)
