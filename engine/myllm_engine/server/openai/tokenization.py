"""Serve `POST /detokenize` and `GET /tokenizer_info`, and what `POST /tokenize` answers to vLLM's bodies."""

from __future__ import annotations

from typing import Any, ClassVar

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import Field, model_validator

from ..errors import Kind, Problem, ProblemError, invalid
from ..fields import StrictModel, parse, refusal
from ..generation import encode, until_disconnect
from ..responses import json_response
from ..settings import Context, ServerContext
from .chat_request import ChatRequest
from .conversation import render
from .errors import OpenAIRoute
from .models import resolve_model
from .protocol import TokenIds

router = APIRouter(route_class=OpenAIRoute, tags=["Tokens"])

# What `messages` are rendered with; `ChatRequest` says what each means, and refuses what it does not know.
_CHAT_FIELDS = (
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
)


class TokenizeRequest(StrictModel):
    """Ask for the tokens of a text or of a conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"media_io_kwargs": ()}

    model: str | None = Field(None, description="A served name; may be left out.")
    prompt: str | None = Field(None, description="A text.")
    messages: list[Any] | None = Field(None, description="A conversation in place of `prompt`.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions that the chat template shows.")
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn; default true.")
    continue_final_message: bool | None = Field(None, description="Leave the last message open.")
    chat_template: str | None = Field(None, description="In place of the model's, where this is allowed.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")
    mm_processor_kwargs: dict[str, Any] | None = Field(None, description="For the processor of images.")
    add_special_tokens: bool | None = Field(
        None, description="With the model's BOS; default: true for `prompt`, false for `messages`."
    )
    return_token_strs: bool | None = Field(None, description="Give the vocabulary's names, too.")

    @model_validator(mode="after")
    def _one_subject(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise refusal("A request has either `prompt` or `messages` (TGI: `inputs`)", "prompt")
        if self.prompt is not None:
            for name in _CHAT_FIELDS:
                if name not in ("messages", "add_special_tokens") and getattr(self, name) is not None:
                    raise refusal(f"`{name}` needs `messages`", name)
        return self

    def conversation(self) -> ChatRequest:
        """Return the request that renders `messages`."""
        given = {name: getattr(self, name) for name in _CHAT_FIELDS if getattr(self, name) is not None}
        return parse(ChatRequest, given)


class DetokenizeRequest(StrictModel):
    """Ask for the text of tokens."""

    model: str | None = Field(None, description="A served name; may be left out.")
    tokens: TokenIds = Field(description="Token ids.")


async def tokenize(body: TokenizeRequest, context: ServerContext, http: HttpRequest) -> Response:
    """Return vLLM's `{"count", "max_model_len", "tokens", "token_strs"}`."""
    resolve_model(context, body.model)
    tokenizer = context.engine.tokenizer
    if body.prompt is None:
        token_ids = await render(body.conversation(), context, http)
    else:
        special = body.add_special_tokens is not False
        [token_ids] = await encode(context, [body.prompt], http, add_special_tokens=special)
    names = [tokenizer.token_name(token_id) for token_id in token_ids] if body.return_token_strs else None
    return json_response(
        {
            "count": len(token_ids),
            "max_model_len": context.engine.max_model_len,
            "tokens": token_ids,
            "token_strs": names,
        }
    )


@router.post("/detokenize", summary="Turn tokens into a text")
async def detokenize(body: DetokenizeRequest, context: Context, http: HttpRequest) -> Response:
    """Return `{"prompt"}`, special tokens included."""
    resolve_model(context, body.model)
    size = context.engine.vocab_size
    for token_id in body.tokens:
        if not 0 <= token_id < size:
            raise invalid(f"`tokens` must hold token ids from 0 to {size - 1}; got {token_id}", "tokens")
    work = context.readers.run(context.engine.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return json_response({"prompt": await until_disconnect(http, work)})


@router.get("/tokenizer_info", summary="Describe the tokenizer")
async def tokenizer_info(context: Context) -> Response:
    """Return what a `tokenizer_config.json` holds; needs `--enable-tokenizer-info-endpoint`."""
    if not context.settings.enable_tokenizer_info_endpoint:
        raise ProblemError(
            Problem(
                Kind.NOT_FOUND,
                "This server does not describe its tokenizer, whose configuration holds the chat template: "
                "start it with `--enable-tokenizer-info-endpoint`",
            )
        )
    return json_response(context.engine.tokenizer.info())
