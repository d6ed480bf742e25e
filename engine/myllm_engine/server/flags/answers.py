"""Options that shape conversations and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from . import values
from .option import flag


@dataclass(frozen=True, slots=True)
class ChatFlags:
    """Hold conversations."""

    title: ClassVar[str] = "Chat, tools and images"

    chat_template: Annotated[
        str | None,
        flag(
            "Chat template that replaces the model's: a file, Jinja text, a name such as llama2, mistral or "
            "hermes (docs/templates.md lists them), or one of the model's own, such as tool_use.",
            metavar="FILE|TEXT|NAME",
        ),
    ] = None
    tokenizer_config_path: Annotated[
        str | None,
        flag(
            "Take the chat template of this tokenizer_config.json, as TGI does.",
            metavar="FILE",
            env=("TOKENIZER_CONFIG_PATH",),
        ),
    ] = None
    chat_template_content_format: Annotated[
        str,
        flag(
            "How the template gets a message's content: as it expects it (auto), as one text (string), or as "
            "a list of parts (openai).",
            metavar="auto|string|openai",
        ),
    ] = "auto"
    default_chat_template_kwargs: Annotated[
        str | None,
        flag(
            """Variables of the template, as in '{"enable_thinking": false}'; a request's own win.""",
            metavar="JSON",
        ),
    ] = None
    trust_request_chat_template: Annotated[
        bool, flag("Let requests bring a template of their own, which is a program.")
    ] = False
    response_role: Annotated[str, flag("Role of the messages that are answered with.", metavar="ROLE")] = (
        "assistant"
    )
    enable_auto_tool_choice: Annotated[
        bool, flag("Let the model call tools of its own accord; needs --tool-call-parser.")
    ] = False
    tool_call_parser: Annotated[
        str | None,
        flag(
            "What reads the model's calls of tools: hermes, mistral, llama3_json, pythonic and others "
            "(docs/tools.md lists them).",
            metavar="NAME",
        ),
    ] = None
    tool_parser_plugin: Annotated[
        str | None, flag("Python file that brings a parser of your own.", metavar="FILE")
    ] = None
    reasoning_parser: Annotated[
        str | None,
        flag(
            "What tells the model's reasoning from its answer: deepseek_r1, qwen3 and others.", metavar="NAME"
        ),
    ] = None
    allow_image_urls: Annotated[
        bool, flag("Fetch images from http and https URLs of public addresses, not only from data URLs.")
    ] = False
    allowed_media_domains: Annotated[
        list[str] | None,
        flag(
            "Hosts to fetch images from, with their subdomains; implies --allow-image-urls. Default: all "
            "public ones.",
            metavar="HOST",
        ),
    ] = None

    def template(self) -> str | None:
        """Return what replaces the model's chat template.

        Raises:
            ValueError: it is given twice, or cannot be read.
        """
        if self.tokenizer_config_path is None:
            return self.chat_template
        if self.chat_template is not None:
            raise ValueError(
                "`--chat-template` and `--tokenizer-config-path` each bring a template: give one"
            )
        return values.read_chat_template(self.tokenizer_config_path)


@dataclass(frozen=True, slots=True)
class AnswerFlags:
    """Say what answers hold."""

    title: ClassVar[str] = "Answers"

    enable_prompt_tokens_details: Annotated[
        bool, flag("Tell in usage how much of the prompt was cached.")
    ] = False
    enable_force_include_usage: Annotated[
        bool, flag("Put usage into every chunk of a stream, asked for or not.")
    ] = False
    enable_per_request_metrics: Annotated[bool, flag("Put a request's timings into its answer.")] = False
    return_tokens_as_token_ids: Annotated[
        bool, flag('Name tokens in log-probabilities "token_id:ID", not by their text.')
    ] = False
    enable_tokenizer_info_endpoint: Annotated[bool, flag("Serve /tokenizer_info.")] = False
    allow_unknown_fields: Annotated[
        bool, flag("Ignore fields that no dialect knows, as vLLM does, rather than refuse the request.")
    ] = False
    pooling: Annotated[
        str | None,
        flag(
            "How /v1/embeddings makes one vector of a text: of the last token, or the mean of all.",
            show_default="last",
            metavar="last|mean",
        ),
    ] = None
