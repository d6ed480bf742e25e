"""Serve `POST /v1/embeddings`."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BeforeValidator, Field, StrictInt, model_validator

from ...request import Request
from ..errors import invalid
from ..fields import parse, refusal
from ..generation import Generation, encode
from ..responses import json_response
from ..settings import Context, ServerContext
from .chat_request import ChatRequest
from .conversation import read_prompt
from .errors import OpenAIRoute
from .ids import answer_id, engine_id
from .models import lora_of, resolve_model
from .protocol import NO_EFFECT, TokenIds, Truncation
from .translation import told_as

if TYPE_CHECKING:
    from ...models.vision import ExpandedPrompt

router = APIRouter(route_class=OpenAIRoute, tags=["OpenAI"])

# As OpenAI's.
_MAX_INPUTS = 2048
_DTYPES = {"float32": "f4", "float16": "f2"}
_ORDERS = {"native": "=", "little": "<", "big": ">"}
# What `messages` are rendered with; `ChatRequest` says what each means, and refuses what it does not know.
_CHAT_FIELDS = (
    "messages",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "mm_processor_kwargs",
)


def _normalize_input(value: Any) -> Any:
    """Return a list of inputs: strings or lists of token ids."""
    if isinstance(value, str):
        return [value]
    if value is None or not isinstance(value, list) or not value:
        raise refusal("`input` must be a string, a list of strings, or one or more lists of token ids")
    if isinstance(value[0], int):
        return [value]
    if len(value) > _MAX_INPUTS:
        raise refusal(f"`input` holds {len(value)} texts; a request may have {_MAX_INPUTS}")
    return value


class EmbeddingRequest(Truncation):
    """Ask for a vector for each text, or for one conversation."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "media_io_kwargs": (),
        "normalize": (True,),
        "padding": ("do_not_pad",),
        "use_activation": (True,),
    }
    reasons: ClassVar[dict[str, str]] = {
        "normalize": "must be true: embeddings have length 1 here",
        "padding": 'must be "do_not_pad": nothing is padded here',
        "use_activation": "must be true: embeddings have length 1 here",
    }
    no_effect: ClassVar[frozenset[str]] = NO_EFFECT

    model: str | None = Field(None, description="A served name; may be left out.")
    input: Annotated[
        Sequence[str | TokenIds] | None,
        BeforeValidator(
            _normalize_input, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ] = Field(None, description="A text, several texts, or token ids in place of a text.")
    messages: list[Any] | None = Field(None, description="A conversation in place of `input`.")
    encoding_format: Literal["float", "base64"] | None = Field(None, description="Default: float.")
    dimensions: StrictInt | None = Field(None, description="Only the model's own number.")
    embed_dtype: Literal["float32", "float16"] | None = Field(None, description="Of base64.")
    endianness: Literal["native", "little", "big"] | None = Field(None, description="Of base64.")
    add_special_tokens: bool | None = Field(
        None, description="Tokenize with the model's BOS; default: true for `input`, false for `messages`."
    )
    add_generation_prompt: bool | None = Field(None, description="Open the assistant's turn; default false.")
    continue_final_message: bool | None = Field(None, description="Leave the last message open.")
    chat_template: str | None = Field(None, description="In place of the model's, where this is allowed.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")
    mm_processor_kwargs: dict[str, Any] | None = Field(None, description="For the processor of images.")
    request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        None, description="Becomes part of the answer's id, unless the header X-Request-Id is there."
    )
    priority: StrictInt | None = Field(None, description="The lower, the sooner it runs; default 0.")
    cache_salt: str | None = Field(
        None, min_length=1, description="Share cached prefixes only with requests of the same salt."
    )

    @model_validator(mode="after")
    def _one_subject(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise refusal("A request has either `input` or `messages`", "input")
        return self

    def conversation(self) -> ChatRequest:
        """Return the request that renders `messages`."""
        given = {name: getattr(self, name) for name in _CHAT_FIELDS if getattr(self, name) is not None}
        return parse(ChatRequest, {**given, "add_generation_prompt": bool(self.add_generation_prompt)})


@router.post("/v1/embeddings", summary="Make vectors of texts")
async def create_embedding(body: EmbeddingRequest, context: Context, http: HttpRequest) -> Response:
    """Make a vector of length 1 of each text: its last token's hidden state, or the mean of all of them.

    `--pooling` chooses. Both come after the model's last norm.
    """
    model = resolve_model(context, body.model)
    if body.dimensions not in (None, context.engine.hidden_size):
        raise invalid(
            f"`dimensions` must be {context.engine.hidden_size} or left out: only embeddings of models that "
            "were trained for it can be shortened",
            "dimensions",
        )
    name = answer_id("embd", body.request_id, http)
    with told_as({"prompt": "input" if body.messages is None else "messages"}):
        requests = await _requests(body, model, name, context, http)
        generation = await Generation.open(context, requests, http)
    await generation.collect(http)
    data = [
        {"index": index, "object": "embedding", "embedding": _encode(body, embedding or [])}
        for index, embedding in enumerate(generation.embeddings)
    ]
    counts = {"prompt_tokens": generation.prompt_tokens, "total_tokens": generation.prompt_tokens}
    head = {"id": name, "object": "list", "created": int(time.time()), "model": model}
    return json_response({**head, "data": data, "usage": counts})


async def _requests(
    body: EmbeddingRequest, model: str, name: str, context: ServerContext, http: HttpRequest
) -> list[Request]:
    requests = []
    for index, (whole, seen) in enumerate(await _prompts(body, context, http)):
        token_ids = body.truncate(whole, context, 0, side="right")
        requests.append(
            Request(
                prompt_token_ids=token_ids,
                images=None if seen is None else seen.inputs(token_ids),
                request_id=engine_id(name, index),
                priority=body.priority or 0,
                lora=lora_of(context, model),
                cache_salt=body.cache_salt,
                pooling=context.settings.pooling or "last",
            )
        )
    return requests


async def _prompts(
    body: EmbeddingRequest, context: ServerContext, http: HttpRequest
) -> list[tuple[list[int], ExpandedPrompt | None]]:
    """Return the token ids of each prompt, and what the model sees in it."""
    if body.input is None:
        return [await read_prompt(body.conversation(), context, http)]
    texts = [text for text in body.input if isinstance(text, str)]
    encoded = iter(
        await encode(context, texts, http, add_special_tokens=body.add_special_tokens is not False)
    )
    return [(next(encoded) if isinstance(text, str) else text, None) for text in body.input]


def _encode(body: EmbeddingRequest, embedding: list[float]) -> list[float] | str:
    if body.encoding_format != "base64":
        return embedding
    dtype = _ORDERS[body.endianness or "native"] + _DTYPES[body.embed_dtype or "float32"]
    return base64.b64encode(np.asarray(embedding, dtype=dtype).tobytes()).decode("ascii")
