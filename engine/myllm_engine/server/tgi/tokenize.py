"""Split texts into tokens as TGI shows them: `[{"id", "text", "start", "stop"}]`.

The path `/tokenize` is vLLM's, too: whoever serves it tells the two apart by `inputs`, and hands TGI's bodies
to `tokenize_inputs`.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from fastapi import Request as HttpRequest
from fastapi import Response

from ...tokenizer import Tokenizer
from ..generation import until_disconnect
from ..responses import json_response
from ..settings import ServerContext
from .protocol import GenerateRequest


async def tokenize_inputs(body: GenerateRequest, context: ServerContext, http: HttpRequest) -> Response:
    """Return the tokens of `inputs`. As in TGI, `parameters` may be there and change nothing.

    Raises:
        ClientDisconnectedError: the client left first.
    """
    return json_response(await tokens(body.inputs, context, http))


async def tokens(
    text: str, context: ServerContext, http: HttpRequest, *, add_special_tokens: bool = True
) -> list[dict[str, Any]]:
    """Return the tokens of a text; `start` and `stop` count bytes of its UTF-8.

    Raises:
        UnicodeEncodeError: for a text with lone surrogates.
        ClientDisconnectedError: the client left first.
    """
    call = context.readers.run(_tokens, context.engine.tokenizer, text, add_special_tokens)
    return await until_disconnect(http, call)


def _tokens(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[dict[str, Any]]:
    places = range(len(text) + 1)
    if not text.isascii():
        places = list(accumulate((len(character.encode()) for character in text), initial=0))
    ids, offsets = tokenizer.encode_with_offsets(text, add_special_tokens)
    return [
        {"id": token_id, "text": text[start:stop], "start": places[start], "stop": places[stop]}
        for token_id, (start, stop) in zip(ids, offsets, strict=True)
    ]
