"""Serve the paths that both dialects have: what the body holds says which one it speaks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi import Request as HttpRequest

from .errors import ClientDisconnectedError, diagnose, invalid
from .fields import parse
from .openai import chat, completions, embeddings, tokenization
from .openai.chat_request import ChatRequest
from .openai.completion_request import CompletionRequest
from .openai.embeddings import EmbeddingRequest
from .openai.errors import OpenAIRoute
from .openai.tokenization import TokenizeRequest
from .settings import Context, ServerContext
from .tgi import generate
from .tgi.errors import render as render_tgi
from .tgi.protocol import GenerateRequest
from .tgi.tokenize import tokenize_inputs

router = APIRouter(route_class=OpenAIRoute)


def _examples(**bodies: dict[str, Any]) -> Any:
    return Body(openapi_examples={name: {"value": value} for name, value in bodies.items()})


_TOKENIZE = _examples(
    vLLM={"prompt": "Hello", "return_token_strs": True},
    conversation={"messages": [{"role": "user", "content": "Hello"}]},
    TGI={"inputs": "Hello"},
)
_INVOCATIONS = _examples(
    chat={"messages": [{"role": "user", "content": "Hello"}]},
    completion={"prompt": "Hello"},
    embedding={"input": "Hello"},
    TGI={"inputs": "Hello", "parameters": {"max_new_tokens": 8}},
)


@router.post("/tokenize", summary="Turn a text or a conversation into tokens", tags=["Tokens"])
async def tokenize(
    body: Annotated[dict[str, Any], _TOKENIZE], context: Context, http: HttpRequest
) -> Response:
    """Return the tokens of `prompt` or `messages` in vLLM's shape, of `inputs` in TGI's."""
    if "inputs" in body:
        return await _in_tgis_words(tokenize_inputs, body, context, http)
    return await tokenization.tokenize(parse(TokenizeRequest, body), context, http)


@router.post("/invocations", summary="Answer whatever is asked (SageMaker)", tags=["System"])
async def invocations(
    body: Annotated[dict[str, Any], _INVOCATIONS], context: Context, http: HttpRequest
) -> Response:
    """Answer as the endpoint that the body was written for.

    `messages` are of `/v1/chat/completions`, `prompt` of `/v1/completions`, `input` of `/v1/embeddings`, and
    `inputs` of TGI's `/`.
    """
    if "inputs" in body:
        return await _in_tgis_words(generate.compat_generate, body, context, http)
    if "messages" in body:
        return await chat.create_chat_completion(parse(ChatRequest, body), context, http)
    if "prompt" in body:
        return await completions.create_completion(parse(CompletionRequest, body), context, http)
    if "input" in body:
        return await embeddings.create_embedding(parse(EmbeddingRequest, body), context, http)
    raise invalid(
        "The body must hold `messages` (as for /v1/chat/completions), `prompt` (/v1/completions), `input` "
        "(/v1/embeddings) or `inputs` (TGI's /)"
    )


async def _in_tgis_words(
    handler: Callable[[GenerateRequest, ServerContext, HttpRequest], Awaitable[Response]],
    body: dict[str, Any],
    context: ServerContext,
    http: HttpRequest,
) -> Response:
    try:
        return await handler(parse(GenerateRequest, body), context, http)
    except ClientDisconnectedError:
        raise
    except Exception as error:  # noqa: BLE001 - a boundary, as every route's
        return render_tgi(diagnose(error))
