"""Hold requests to the server's limits, whatever dialect they come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..request import Request
from .errors import invalid

if TYPE_CHECKING:
    from .settings import ServerContext


def check_requests(context: ServerContext, requests: Sequence[Request]) -> None:
    """Refuse requests that are beyond what the server is set to serve.

    Raises:
        ProblemError: they would never fit into the queue, a prompt is too long, or a constraint is not taken.
    """
    settings = context.settings
    check_room(context, sum(request.params.num_sequences for request in requests))
    longest = max(len(request.prompt_token_ids) for request in requests)
    if settings.max_input_tokens is not None and longest > settings.max_input_tokens:
        raise invalid(
            f"The prompt has {longest} tokens, and this server takes {settings.max_input_tokens} at most "
            "(its --max-input-tokens). Please shorten the prompt."
        )
    if settings.disable_grammar_support and any(request.params.structured for request in requests):
        raise invalid("grammar is not supported")  # TGI's words


def check_room(context: ServerContext, sequences: int) -> None:
    """Refuse what would be told to come back later for ever. The engine knows of single requests only.

    Raises:
        ProblemError: so many would never fit into the queue.
    """
    config = context.engine.config
    if config.max_queue is not None and sequences > config.max_num_seqs + config.max_queue:
        raise invalid(
            f"The request asks for {sequences} sequences (prompts x n), and no more than "
            f"{config.max_num_seqs + config.max_queue} may run and wait on this server"
        )
