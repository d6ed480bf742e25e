"""Shorten a prompt until it fits the model's context, counted by the server's own tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .errors import (
    ContextLengthError,
    InvalidParameterError,
    InvalidResponseError,
    NotFoundError,
    UnsupportedFeatureError,
)
from .flow import answer_flow, models_flow
from .job import Flow
from .route import Route
from .types import Tokens
from .wire import Call


def fit_flow(route: Route, call: Call, max_tokens: int, keep: str) -> Flow[Any]:
    """Return the prompt or the messages of a "tokenize" call, shortened; see `Client.fit`."""
    if keep not in ("end", "start"):
        raise InvalidParameterError(f"`keep={keep!r}` must be 'end' or 'start'.", param="keep")
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 0:
        raise InvalidParameterError(
            f"`max_tokens={max_tokens!r}` must be a whole number, 0 or more.", param="max_tokens"
        )
    tokens: Tokens = yield from answer_flow(route, call)
    context = tokens.max_model_len or (yield from _context(route, call))
    room = context - max_tokens
    subject = call.prompt if call.messages is None else call.messages
    if tokens.count <= room:
        return subject
    if room <= 0:
        raise _too_long(tokens.count, max_tokens, context)
    if call.messages is not None:
        return (yield from _fit_messages(route, call, max_tokens, context))
    return (yield from _fit_text(route, call, tokens, room, keep))


def _context(route: Route, call: Call) -> Flow[int]:
    """Return the length of the model's context from the list of models, where the tokenizer did not tell."""
    for server in route.balancer.servers():
        if server.info is not None and "max_model_len" in server.info.limits:
            return server.info.limits["max_model_len"]
    models = yield from models_flow(route, call.timeout)
    named = [model for model in models if call.model in (None, model.id) and model.max_model_len]
    if not named or named[0].max_model_len is None:
        raise UnsupportedFeatureError(
            "This server does not tell the length of the model's context, so nothing can be fitted into it."
        )
    return named[0].max_model_len


def _fit_text(route: Route, call: Call, tokens: Tokens, room: int, keep: str) -> Flow[str]:
    """Cut a text to `room` tokens: by the ids where the server can turn them back, else by characters."""
    text = call.prompt
    assert isinstance(text, str)

    def cut(size: int) -> str:
        return text[len(text) - size :] if keep == "end" else text[:size]

    size = len(text) * room // tokens.count
    if tokens.ids is not None:
        ids = tokens.ids[-room:] if keep == "end" else tokens.ids[:room]
        back = yield from _text_of(route, call, ids)
        if back is not None:
            size = _shared(text, back, keep) or size
    # The cut changes how its edge is split, so the size is settled by counting: by bisection, from a good
    # guess.
    fits, breaks, step = 0, len(text), 8
    while fits < breaks - 1:
        size = min(max(size, fits + 1), breaks - 1)
        counted: Tokens = yield from answer_flow(route, replace(call, prompt=cut(size)))
        if counted.count <= room:
            if counted.count == room:
                return cut(size)
            fits, size = size, size + step
        else:
            breaks, size = size, size - step
        step *= 2
        if not fits < size < breaks:
            size = (fits + breaks) // 2
    return cut(fits)


def _text_of(route: Route, call: Call, ids: list[int]) -> Flow[str | None]:
    try:
        answer = yield from answer_flow(route, replace(call, kind="detokenize", prompt=ids))
    except (UnsupportedFeatureError, NotFoundError, InvalidResponseError):
        return None
    text: str = answer.text
    return text


def _shared(text: str, back: str, keep: str) -> int:
    """Return how many characters of the text's kept side its tokens gave back (0: they are other text)."""
    same: Callable[[str], bool] = text.endswith if keep == "end" else text.startswith
    for lost in range(min(4, len(back))):  # a character cut in two comes back as a replacement mark
        part = back[lost:] if keep == "end" else back[: len(back) - lost]
        if same(part):
            return len(part)
    return 0


def _fit_messages(route: Route, call: Call, max_tokens: int, context: int) -> Flow[list[dict[str, Any]]]:
    """Drop a conversation's oldest turns; bisection finds the fewest, for fewer messages are fewer tokens."""
    assert call.messages is not None
    head, turns = _turns(call.messages)

    def without(dropped: int) -> list[dict[str, Any]]:
        return [*head, *(message for turn in turns[dropped:] for message in turn)]

    least: Tokens = yield from answer_flow(route, replace(call, messages=without(len(turns) - 1)))
    if least.count > context - max_tokens:
        raise _too_long(least.count, max_tokens, context)
    breaks, fits = 0, len(turns) - 1
    while breaks + 1 < fits:
        middle = (breaks + fits) // 2
        counted: Tokens = yield from answer_flow(route, replace(call, messages=without(middle)))
        if counted.count <= context - max_tokens:
            fits = middle
        else:
            breaks = middle
    return without(fits)


def _turns(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Split a conversation into its system head, and turns that begin with a user's message each.

    An answer without its question, or a tool's result without its call, is refused by most templates.
    """
    size = next(
        (i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages)
    )
    turns: list[list[dict[str, Any]]] = []
    for message in messages[size:]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return messages[:size], turns or [[]]


def _too_long(prompt_tokens: int, max_tokens: int, limit: int) -> ContextLengthError:
    error = ContextLengthError(
        f"{prompt_tokens} tokens of prompt that cannot be shortened, and `max_tokens={max_tokens}` more, do "
        f"not fit the model's context of {limit}.",
        hint="Shorten the last message, or lower `max_tokens`.",
    )
    error.prompt_tokens, error.max_tokens, error.limit = prompt_tokens, max_tokens, limit
    return error
