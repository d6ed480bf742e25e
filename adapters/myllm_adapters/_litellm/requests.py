"""LiteLLM's requests in the SDK's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import httpx
import litellm

import myllm
from myllm.options import RequestOptions
from myllm.params import KNOWN_NAMES

from .connections import Connections, Place
from .templates import check_arguments, registered_chat_template, registered_prompt

# OpenAI's parameters, which LiteLLM hands on to all providers like OpenAI's; `drop_params` is about them.
_OPENAI = frozenset(litellm.OpenAILikeChatConfig().get_supported_openai_params("")) | {
    "best_of", "echo", "suffix",
}  # fmt: skip
# Those that no server has.
_OPENAI_ONLY = _OPENAI - KNOWN_NAMES - frozenset(RequestOptions.__annotations__)
# `stream` is known from the method, the usage of a stream is always asked for, and LiteLLM retries by itself.
_NOT_SENT = ("stream", "stream_options", "max_retries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request of LiteLLM's, read.

    Attributes:
        model: as the server knows it.
        kind: "chat"; "text", from `text_completion`; or "templated", a chat that is one prompt, made by a
            template registered with LiteLLM.
        messages: of a chat.
        prompts: of the two other kinds.
        place: where it goes; None: through the registered client.
        arguments: of the SDK's call. Under `drop_params` they may become fewer.
        droppable: whether those of OpenAI's parameters that the server lacks may be left out.
        logging: LiteLLM's log of this call.
    """

    model: str
    kind: Literal["chat", "text", "templated"]
    messages: list[dict[str, Any]]
    prompts: list[str]
    place: Place | None
    arguments: dict[str, Any]
    droppable: bool
    logging: Any

    @classmethod
    def read(
        cls, request: Mapping[str, Any], connections: Connections, provider: str, *, stream: bool = False
    ) -> Job:
        """Read a request for text.

        Raises:
            InvalidParameterError: a value makes no sense, or says nothing here.
            UnsupportedFeatureError: LiteLLM has no way to carry what was asked.
        """
        model, messages = request["model"], request["messages"]
        settings = request.get("litellm_params") or {}
        arguments, place = _arguments(request, connections, stream=stream)
        droppable = litellm.drop_params is True or settings.get("drop_params") is True
        if droppable:
            for name in _OPENAI_ONLY.intersection(arguments):
                del arguments[name]
        kind: Literal["chat", "text", "templated"] = "chat"
        prompts: list[str] = []
        if settings.get("text_completion"):
            # LiteLLM packs each prompt into a user message.
            kind, prompts = "text", [message["content"] for message in messages]
            if stream:
                _check_text_stream(arguments, droppable)
        elif (
            prompt := registered_prompt(provider, model, messages, request.get("custom_prompt_dict"))
        ) is not None:
            check_arguments(model, arguments)
            kind, prompts = "templated", [prompt]
        elif (template := registered_chat_template(provider, model)) is not None:
            arguments.setdefault("chat_template", template)
        job = cls(
            model=model,
            kind=kind,
            messages=messages,
            prompts=prompts,
            place=place,
            arguments=arguments,
            droppable=droppable,
            logging=request["logging_obj"],
        )
        _log_request(request, prompts or messages, connections.url(place))
        return job

    @property
    def width(self) -> int:
        """Choices of one prompt."""
        return self.arguments.get("n") or self.arguments.get("num_return_sequences") or 1

    def drop(self, error: myllm.UnsupportedFeatureError) -> bool:
        """Drop the parameter that a server lacks, where that was asked for; tell whether anything changed."""
        name = error.param
        if not self.droppable or name is None or name not in _OPENAI:
            return False
        return self.arguments.pop(name, None) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingJob:
    """One request for embeddings; see `Job`."""

    model: str
    texts: list[Any] | str
    place: Place | None
    arguments: dict[str, Any]
    logging: Any

    @classmethod
    def read(cls, request: Mapping[str, Any], connections: Connections) -> EmbeddingJob:
        """Read a request for embeddings.

        Raises:
            InvalidParameterError: a value makes no sense.
        """
        arguments, place = _arguments(request, connections)
        job = cls(
            model=request["model"],
            texts=request["input"],
            place=place,
            arguments=arguments,
            logging=request["logging_obj"],
        )
        _log_request(request, request["input"], connections.url(place))
        return job


def _arguments(
    request: Mapping[str, Any], connections: Connections, *, stream: bool = False
) -> tuple[dict[str, Any], Place | None]:
    arguments = dict(request["optional_params"])
    for name in _NOT_SENT:
        arguments.pop(name, None)
    settings = request.get("litellm_params") or {}
    place = connections.place(
        request["model"],
        request.get("api_base"),
        request.get("api_key"),
        arguments.pop("dialect", None),
        settings.get("ssl_verify"),
    )
    arguments["model"] = request["model"]
    arguments["timeout"] = _timeout(request.get("timeout"), stream=stream)
    if headers := request.get("headers"):
        arguments["extra_headers"] = headers
    return arguments, place


def _timeout(value: Any, *, stream: bool) -> myllm.Timeout:
    """Read LiteLLM's timeout; in a stream it limits the silence, for a stream may last longer."""
    if value is None:
        return myllm.Timeout()
    if isinstance(value, httpx.Timeout):
        return myllm.Timeout(connect=value.connect, first_byte=value.read, idle=value.read)
    limits = myllm.Timeout.of(float(value))
    return replace(limits, total=None) if stream else limits


def _check_text_stream(arguments: dict[str, Any], droppable: bool) -> None:
    """Refuse, or drop, what LiteLLM's chunks of text have no place for.

    `TextCompletionStreamWrapper` (`litellm/utils.py`) hands on text, index and finish_reason.
    """
    for name in ("logprobs", "top_logprobs", "prompt_logprobs"):
        value = arguments.pop(name, None) if droppable else arguments.get(name)
        if not droppable and value is not None and value is not False:
            raise myllm.UnsupportedFeatureError(
                f"`{name}={value!r}`: LiteLLM's streams of text carry no log-probabilities.",
                param=name,
                hint="Leave out `stream`, or stream a chat (`litellm.completion`), which carries them.",
            )


def _log_request(request: Mapping[str, Any], subject: Any, url: str) -> None:
    """Tell LiteLLM's callbacks (`log_pre_api_call`) what is sent."""
    request["logging_obj"].pre_call(
        input=subject,
        api_key=request.get("api_key"),
        additional_args={"complete_input_dict": request["optional_params"], "api_base": url},
    )
