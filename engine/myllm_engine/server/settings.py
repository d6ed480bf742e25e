"""Hold what the HTTP side is configured with, and what its handlers share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

if TYPE_CHECKING:
    from ..engine import AsyncEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Configure the HTTP server. The limits carry the names and defaults of vLLM's and TGI's flags.

    Attributes:
        served_model_names: names that `/v1/models` reports; the first one also stands in answers. Empty: the
            model as it was given to the engine.
        api_keys: keys that open the server; empty: no key is asked for. Kept out of `repr`.
        max_logprobs: largest `logprobs` / `top_logprobs` on `/v1`.
        max_best_of: TGI's limit on `best_of`.
        max_stop_sequences: TGI's limit on the length of `stop`.
        max_top_n_tokens: TGI's limit on `top_n_tokens`.
    """

    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_logprobs: int = 20
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5


@dataclass(frozen=True, slots=True)
class ServerContext:
    """Give a handler what it needs: the engine and the settings."""

    engine: AsyncEngine
    settings: ServerSettings
    version: str
    started: int


async def get_context(request: Request) -> ServerContext:
    """Return the context of the application that serves `request`.

    A coroutine only because FastAPI would run a plain function in a thread.
    """
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(get_context)]
