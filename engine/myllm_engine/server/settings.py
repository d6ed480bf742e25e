"""Hold what the HTTP side is configured with, and what its handlers share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Depends, Request

from . import reasoning, tools
from .http_settings import HttpSettings
from .traffic import Traffic
from .workers import Workers

if TYPE_CHECKING:
    from ..async_engine import AsyncEngine
    from ..loop import Observer

# Threads that render conversations and tokenize long texts.
READERS = 4

# What an HTTP header carries unchanged and a shell or a list of keys in a variable does not split.
_KEY = re.compile(r"[!-~]+")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Configure the HTTP server. Names and defaults are those of vLLM's and TGI's flags.

    Attributes:
        served_model_names: names that `/v1/models` reports; the first one also stands in answers. Empty: the
            model as it was given to the engine.
        api_keys: keys that open the server; empty: no key is asked for. Kept out of `repr`.
        http: what lies around the routes.

        generation_config: default values of sampling parameters, as a `generation_config.json` has them;
            None: the model's own.
        override_generation_config: the same; these win.
        response_role: role of the messages that chats are answered with.
        trust_request_chat_template: whether requests may bring a chat template.
        default_chat_template_kwargs: variables of the chat template; a request's own win.
        chat_template_content_format: how a template gets a message's content: "string", "openai" (parts), or
            "auto", what it expects.
        enable_auto_tool_choice: whether the model may call tools of its own accord.
        tool_call_parser: name of what reads tool calls from the model's text.
        tool_parser_plugin: Python file that brings more of these.
        reasoning_parser: name of what tells the model's reasoning from its answer.
        pooling: how hidden states become an embedding: "last", of the last token, or "mean"; None: "last".
        allow_image_urls: whether images are fetched from http(s) URLs, of public hosts.
        allowed_media_domains: hosts to fetch from, with their subdomains; empty: all public ones.
        max_images: images of one request.
        max_image_size: largest image, in bytes.
        max_image_pixels: largest width times height of an image.

        enable_prompt_tokens_details: whether `usage` tells how much of the prompt was cached.
        enable_force_include_usage: whether every chunk of a stream has `usage` even when nobody asked.
        enable_per_request_metrics: whether answers carry `metrics`, the request's timings.
        return_tokens_as_token_ids: whether log-probabilities name tokens "token_id:<id>".
        enable_tokenizer_info_endpoint: whether `/tokenizer_info` is served.
        allow_unknown_fields: whether fields that no dialect knows are ignored, rather than refused.
        allow_runtime_lora: whether requests may load and unload LoRA adapters.

        max_logprobs: largest `logprobs` / `top_logprobs` on `/v1`.
        max_best_of: TGI's limit on `best_of`.
        max_stop_sequences: TGI's limit on the length of `stop`.
        max_top_n_tokens: TGI's limit on `top_n_tokens`.
        max_input_tokens: TGI's limit on the prompt; None: the context, less one token.
        max_client_batch_size: TGI's limit on the prompts of one request.
        disable_grammar_support: whether TGI's `grammar` is refused.
        max_concurrent_requests: requests that are answered at once; more are refused. None: no limit.
        max_stored_responses: responses that `/v1/responses` keeps; 0: none.
        max_body_size: largest body of a request, in bytes.
        enable_ui: whether there is a page at `/ui`.

    Raises:
        ValueError: from the constructor, for a key that no client can send, a limit out of range, or a parser
            that is not known.
    """

    served_model_names: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    http: HttpSettings = field(default_factory=HttpSettings)

    generation_config: Mapping[str, Any] | None = None
    override_generation_config: Mapping[str, Any] = field(default_factory=_nothing)
    response_role: str = "assistant"
    trust_request_chat_template: bool = False
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=_nothing)
    chat_template_content_format: str = "auto"
    enable_auto_tool_choice: bool = False
    tool_call_parser: str | None = None
    tool_parser_plugin: str | None = None
    reasoning_parser: str | None = None
    pooling: Literal["last", "mean"] | None = None
    allow_image_urls: bool = False
    allowed_media_domains: tuple[str, ...] = ()
    max_images: int = 4
    max_image_size: int = 20 * 2**20
    max_image_pixels: int = 4096 * 4096

    enable_prompt_tokens_details: bool = False
    enable_force_include_usage: bool = False
    enable_per_request_metrics: bool = False
    return_tokens_as_token_ids: bool = False
    enable_tokenizer_info_endpoint: bool = False
    allow_unknown_fields: bool = False
    allow_runtime_lora: bool = False

    max_logprobs: int = 20
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int | None = None
    max_client_batch_size: int = 4
    disable_grammar_support: bool = False
    max_concurrent_requests: int | None = None
    max_stored_responses: int = 1000
    max_body_size: int = 8 * 2**20
    enable_ui: bool = True

    def __post_init__(self) -> None:
        for number, key in enumerate(self.api_keys, start=1):
            if not _KEY.fullmatch(key):  # said without the key itself, which is a secret
                fault = "holds what no client can send" if key else "is empty and would let everybody in"
                raise ValueError(
                    f"API key {number} of {len(self.api_keys)} {fault}: a key is one or more ASCII "
                    "characters, without blanks"
                )
        for name in ("max_body_size", "max_image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 byte or more; got {getattr(self, name)!r}")
        for name, allowed in (
            ("pooling", (None, "last", "mean")),
            ("chat_template_content_format", ("auto", "string", "openai")),
        ):
            if getattr(self, name) not in allowed:
                words = ", ".join(repr(word) for word in allowed if word)
                raise ValueError(f"`{name}` must be one of {words}; got {getattr(self, name)!r}")
        if self.tool_parser_plugin is not None:
            tools.load_plugin(self.tool_parser_plugin)
        if self.tool_call_parser is not None:
            tools.find(self.tool_call_parser)
        elif self.enable_auto_tool_choice:
            raise ValueError(
                "`enable_auto_tool_choice` needs a `tool_call_parser`, which knows how the model writes calls"
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
        sampling_defaults: values of OpenAI's sampling parameters that requests leave out.
        traffic: requests that are answered now, and how others went.
        readers: render conversations and tokenize long texts.
        loaders: load LoRA adapters.
        observers: are told of the engine's requests.
        closing: what `close` calls, too.
    """

    engine: AsyncEngine
    settings: ServerSettings
    version: str
    started: int
    sampling_defaults: Mapping[str, Any] = field(default_factory=_nothing)
    traffic: Traffic = field(default_factory=Traffic)
    readers: Workers = field(default_factory=lambda: Workers("read prompts", threads=READERS, waiting=1000))
    loaders: Workers = field(default_factory=lambda: Workers("load adapters", threads=1, waiting=16))
    observers: list[Observer] = field(default_factory=list)
    closing: list[Callable[[], None]] = field(default_factory=list)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` of the engine's requests, until the context is closed."""
        self.observers.append(observer)
        self.engine.add_observer(observer)

    def close(self) -> None:
        """Let go of the engine, and end the threads when they have done what they do; waits for none."""
        for observer in self.observers:
            self.engine.remove_observer(observer)
        for close in self.closing:
            close()
        self.readers.close()
        self.loaders.close()


async def get_context(request: Request) -> ServerContext:
    """Return the context of the application that serves `request`.

    A coroutine only because FastAPI would run a plain function in a thread.
    """
    context: ServerContext = request.app.state.context
    return context


Context = Annotated[ServerContext, Depends(get_context)]
