"""Answer a conversation: what chat completions, and the APIs that are built like them, have in common.

A dialect reads its body into a `ChatRequest`, opens a `Conversation`, and writes the `Delta`s of a stream or
the `Reply`s of a whole answer in its own shape.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from fastapi import Request as HttpRequest

from ...errors import InvalidRequestError
from ...request import Request
from ..errors import invalid
from ..generation import Generation, encode, until_disconnect
from ..sampling_defaults import with_defaults
from ..settings import ServerContext
from .answer import AnswerForm
from .chat_request import ChatRequest
from .deltas import ChatFinishReason, Delta, Reply, ToolCall, ToolCallDelta
from .ids import engine_id
from .logprobs import check_limit
from .models import lora_of, resolve_model
from .translation import told_as
from .vision import check_sight, expand_images

if TYPE_CHECKING:
    from ...models.vision import ExpandedPrompt

__all__ = ["ChatFinishReason", "Conversation", "Delta", "Reply", "ToolCall", "ToolCallDelta", "render"]


class Conversation:
    """Iterate over the deltas of an answer; open it with `open`, and close it with `aclose` in every case.

    Attributes:
        body: what was asked.
        model: the name to answer with.
        generation: what makes the text; counts its tokens.
        form: what the answer looks like.
        role: whose message it is.
    """

    def __init__(
        self, body: ChatRequest, model: str, generation: Generation, form: AnswerForm, role: str
    ) -> None:
        self.body = body
        self.model = model
        self.generation = generation
        self.form = form
        self.role = role
        self._readers = [form.reader() for _ in range(body.n or 1)]
        self._count_reasoning()

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
        names = {"prompt": "messages"}  # what the engine calls otherwise
        if body.max_completion_tokens is not None:
            names["max_tokens"] = "max_completion_tokens"
        with told_as(names):
            return await cls._open(with_defaults(body, context.sampling_defaults), context, http, request_id)

    @classmethod
    async def _open(
        cls, body: ChatRequest, context: ServerContext, http: HttpRequest, request_id: str | None
    ) -> Conversation:
        settings = context.settings
        model = resolve_model(context, body.model)
        check_limit(body.top_logprobs, settings.max_logprobs, "top_logprobs")
        check_limit(body.prompt_logprobs, settings.max_logprobs, "prompt_logprobs")
        form = AnswerForm(body, settings, context.engine.tokenizer)
        params = body.sampling_params(
            max_tokens=body.completion_limit, logprobs=(body.top_logprobs or 0) if body.logprobs else None
        )
        token_ids, seen = await read_prompt(body, context, http)
        token_ids = body.truncate(token_ids, context, body.completion_limit)
        request = Request(
            prompt_token_ids=token_ids,
            images=None if seen is None else seen.inputs(token_ids),
            params=form.params(params, token_ids),
            request_id=engine_id(request_id or "chat"),
            priority=body.priority or 0,
            lora=lora_of(context, model),
            cache_salt=body.cache_salt,
        )
        role = settings.response_role if body.add_generation_prompt is not False else body.messages[-1].role
        try:
            generation = await Generation.open(context, [request], http, interval=body.stream_interval)
        except InvalidRequestError as error:
            if error.param == "tools":
                raise invalid(f"The tools cannot be called as described: {error}", "tools") from error
            raise
        return cls(body, model, generation, form, role)

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield what the choices gain, as it comes."""
        async for _, output in self.generation:
            deltas = [self._readers[sequence.index].read(sequence) for sequence in output.outputs]
            self._count_reasoning()
            for delta in deltas:
                yield delta

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

    def _count_reasoning(self) -> None:
        if self.form.reasons:
            self.generation.reasoning_tokens = sum(reader.reasoning_tokens for reader in self._readers)


async def render(body: ChatRequest, context: ServerContext, http: HttpRequest) -> list[int]:
    """Return the token ids of a conversation's prompt; see `read_prompt`."""
    return (await read_prompt(body, context, http))[0]


async def read_prompt(
    body: ChatRequest, context: ServerContext, http: HttpRequest
) -> tuple[list[int], ExpandedPrompt | None]:
    """Return the token ids of a conversation's prompt, and what the model sees in it; None without images.

    Raises:
        InvalidRequestError: there is no chat template, or it refuses the messages; an image cannot be read,
            or the model sees none.
        ProblemError: the request brings a template, and the server does not trust it.
        ClientDisconnectedError: the client left first.
    """
    check_sight(body.messages, context)
    prompt = await render_text(body, context, http)
    seen = await expand_images(body.messages, prompt, context, http)
    if seen is not None:
        prompt = seen.text
    # The template writes the special tokens itself.
    [token_ids] = await encode(context, [prompt], http, add_special_tokens=bool(body.add_special_tokens))
    return token_ids, seen


async def render_text(body: ChatRequest, context: ServerContext, http: HttpRequest) -> str:
    """Return a conversation's prompt as the template writes it.

    Raises:
        InvalidRequestError: there is no chat template, or it refuses the messages.
        ProblemError: the request brings a template, and the server does not trust it.
        ClientDisconnectedError: the client left first.
    """
    if body.chat_template is not None and not context.settings.trust_request_chat_template:
        raise invalid(
            "`chat_template` is a program that this server does not run for its clients; "
            "the server allows it with --trust-request-chat-template",
            "chat_template",
        )
    # Templates are programs: a slow one must not hold up the streams of others.
    rendering = context.readers.run(
        context.engine.tokenizer.render_chat,
        [message.for_template() for message in body.messages],
        context.settings.chat_template_content_format,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        chat_template=body.chat_template,
        **body.template_variables(context.settings.default_chat_template_kwargs),
    )
    return await until_disconnect(http, rendering)
