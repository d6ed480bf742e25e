"""Serve TGI's `/chat_tokenize`: what a conversation looks like to the model."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest

from ..errors import InvalidRequestError
from .openai.chat_request import ChatRequest
from .openai.conversation import render_text
from .responses import json_response
from .settings import Context
from .tgi.errors import TGIRoute, template_error
from .tgi.tokenize import tokens

router = APIRouter(route_class=TGIRoute, tags=["TGI"])


# TGI documents POST, and serves GET with a body.
@router.post("/chat_tokenize", summary="Render a conversation and split it into tokens")
@router.get("/chat_tokenize", include_in_schema=False)
async def chat_tokenize(body: ChatRequest, context: Context, http: HttpRequest) -> Response:
    """Return `{"tokenize_response", "templated_text"}`; a body of `/v1/chat/completions` is taken whole."""
    try:
        text = await render_text(body, context, http)
    except InvalidRequestError as error:
        raise template_error(str(error)) if error.param == "messages" else error from error
    shown = await tokens(text, context, http, add_special_tokens=bool(body.add_special_tokens))
    return json_response({"tokenize_response": shown, "templated_text": text})
