"""Hold what the HTTP side is configured with, and what its handlers share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request

from . import reasoning, tools
from .workers import Workers

if TYPE_CHECKING:
    from ..async_engine import AsyncEngine

# What an HTTP header carries unchanged and a shell or a list of keys in a variable does not split.
_KEY = re.compile(r"[!-~]+")


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
        max_body_size: largest body of a request, in bytes.
        max_stored_responses: responses of `/v1/responses` that are kept for later; 0 keeps none.
        enable_auto_tool_choice: the model may choose to call tools; needs `tool_call_parser`.
        tool_call_parser: name of the format in which the model writes calls of tools.
        tool_parser_plugin: Python file that registers further such formats.
        reasoning_parser: name of the format in which the model thinks before it answers.
        response_role: whose turn the model's answer is.
        trust_request_chat_template: requests may bring a chat template, a program that the server runs.
        default_chat_template_kwargs: variables for the chat template that requests may override.

    Raises:
        ValueError: from the constructor, for a key that no client can send, a limit out of range, or a parser
            that is not known.
    """

    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_logprobs: int = 20
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_body_size: int = 8 * 2**20
    max_stored_responses: int = 256
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    tool_parser_plugin: str | None = None
    reasoning_parser: str | None = None
    response_role: str = "assistant"
    trust_request_chat_template: bool = False
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, key in enumerate(self.api_keys, start=1):
            if not _KEY.fullmatch(key):  # said without the key itself, which is a secret
                fault = "holds what no client can send" if key else "is empty and would let everybody in"
                raise ValueError(
                    f"API key {number} of {len(self.api_keys)} {fault}: a key is one or more ASCII "
                    "characters, without blanks"
                )
        if self.max_body_size < 1:
            raise ValueError(f"`max_body_size` must be 1 byte or more; got {self.max_body_size!r}")
        if self.max_stored_responses < 0:
            raise ValueError(
                f"`max_stored_responses` must not be negative; got {self.max_stored_responses!r}"
            )
        if self.tool_parser_plugin is not None:
            tools.load_plugin(self.tool_parser_plugin)
        if self.tool_call_parser is not None:
            tools.find(self.tool_call_parser)
        elif self.enable_auto_tool_choice:
            raise ValueError(
                "`enable_auto_tool_choice` needs `tool_call_parser`: the format of the model's calls"
            )
        if self.reasoning_parser is not None:
            reasoning.find(self.reasoning_parser)
        if not self.response_role:
            raise ValueError("`response_role` must not be empty")


@dataclass(frozen=True, slots=True)
class ServerContext:
    """Give a handler what it needs.

    Attributes:
        engine: what makes the text.
        settings: see `ServerSettings`.
        version: of the server.
        started: seconds since the epoch.
        readers: render conversations and tokenize long texts.
    """

    engine: AsyncEngine
    settings: ServerSettings
    version: str
    started: int
    readers: Workers = field(default_factory=lambda: Workers("read prompts", threads=4, waiting=1000))

    def close(self) -> None:
        """End the threads when they have done what they do; does not wait for them."""
        self.readers.close()


async def get_context(request: Request) -> ServerContext:
    """Return the context of the application that serves `request`.

    A coroutine only because FastAPI would run a plain function in a thread.
    """
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(get_context)]
