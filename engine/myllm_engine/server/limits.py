"""Hold requests to the server's limits, whatever dialect they come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..request import Request
from .errors import Kind, Problem, ProblemError, invalid

if TYPE_CHECKING:
    from .settings import ServerContext


class Gate:
    """Let so many requests in at once, and tell the others to come back.

    Args:
        limit: requests that may be inside; None: any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._inside = 0

    def enter(self) -> None:
        """Let a request in, until `leave`.

        Raises:
            ProblemError: there is no room.
        """
        if self._limit is not None and self._inside >= self._limit:
            raise ProblemError(
                Problem(
                    Kind.OVERLOADED,
                    f"{self._inside} requests are being served, and no more may be at once (the server's "
                    "--max-concurrent-requests): try again later",
                    headers={"Retry-After": "1"},
                )
            )
        self._inside += 1

    def leave(self) -> None:
        """Make room again."""
        self._inside -= 1


def check_requests(context: ServerContext, requests: Sequence[Request]) -> None:
    """Refuse requests that are beyond what the server is set to serve.

    Raises:
        ProblemError: they would never fit into the queue, a prompt is too long, or a constraint is not taken.
    """
    settings, config = context.settings, context.engine.config
    sequences = sum(request.params.num_sequences for request in requests)
    # Else they would be told to come back later for ever. The engine knows of single requests only.
    if config.max_queue is not None and sequences > config.max_num_seqs + config.max_queue:
        raise invalid(
            f"The request asks for {sequences} sequences (prompts x n), and no more than "
            f"{config.max_num_seqs + config.max_queue} may run and wait on this server"
        )
    longest = max(len(request.prompt_token_ids) for request in requests)
    if settings.max_input_tokens is not None and longest > settings.max_input_tokens:
        raise invalid(
            f"The prompt has {longest} tokens, and this server takes {settings.max_input_tokens} at most "
            "(its --max-input-tokens). Please shorten the prompt."
        )
    if settings.disable_grammar_support and any(request.params.structured for request in requests):
        raise invalid("grammar is not supported")  # TGI's words


def check_batch(context: ServerContext, count: int, param: str) -> None:
    """Refuse more prompts in one request than the server is set to take.

    Raises:
        ProblemError: in TGI's words.
    """
    limit = context.settings.max_client_batch_size
    if limit is not None and count > limit:
        raise invalid(f"Number of prompts exceeds the maximum allowed batch size of {limit}", param)
