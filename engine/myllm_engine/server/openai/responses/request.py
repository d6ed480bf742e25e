"""Describe the body of `POST /v1/responses`.

Types: `openai/types/responses/response_create_params.py` of the openai package; vLLM's additions:
`vllm/entrypoints/openai/responses/protocol.py`. Types are checked here, ranges where chat requests are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictInt, field_validator, model_validator

from ...fields import StrictModel, refusal
from ..constraints import StructuredOutputs
from ..protocol import REASONS, UNSUPPORTED, Texts, TokenIds
from . import tools as tool_types
from .items import AnyItem, Item, as_messages, is_unfinished
from .tools import ToolChoice, Tools

# Fields that chat requests have under the same name and with the same meaning.
_SAME = (
    "cache_salt",
    "chat_template_kwargs",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "min_p",
    "model",
    "presence_penalty",
    "priority",
    "repetition_penalty",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
    "watermarking",
)

# What clients call the fields that have other names in chat requests and in the engine.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}

_LOGPROBS = "message.output_text.logprobs"

# The others concern tools of OpenAI's, which are refused, or reasoning that is hidden from the client, which
# is shown here.
_INCLUDABLE = {
    _LOGPROBS,
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
}


class TextFormat(StrictModel):
    """Say what the text must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> TextFormat:
        if self.type == "json_schema" and self.schema_ is None:
            raise refusal("`schema` is required by this type", "schema")
        return self

    def for_chat(self) -> dict[str, Any]:
        """Return the format as chat completions write it."""
        if self.type != "json_schema":
            return {"type": self.type}
        return {
            "type": "json_schema",
            "json_schema": self.model_dump(by_alias=True, exclude={"type"}, exclude_none=True),
        }


class TextConfig(StrictModel):
    """Configure the text of the answer."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @field_validator("verbosity")
    @classmethod
    def _usual(cls, verbosity: str | None) -> str | None:
        if verbosity not in (None, "medium"):
            raise refusal(f"`verbosity` {verbosity!r} is OpenAI's models' own: put it into words")
        return verbosity


class ReasoningConfig(StrictModel):
    """Configure how much a reasoning model thinks. Summaries are not made: the thoughts are shown whole."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"context": ("auto",), "mode": ("standard",)}
    reasons: ClassVar[dict[str, str]] = {
        "context": "is not chosen here: the chat template says which thoughts of earlier turns stay",
        "mode": "is of OpenAI's models: see `reasoning.effort`",
    }
    no_effect: ClassVar[frozenset[str]] = frozenset({"generate_summary", "summary"})

    effort: str | None = None


class EventOptions(StrictModel):
    """Say what a stream carries; events are not padded here."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})


def _as_items(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class ResponsePrompt(StrictModel):
    """Hold what makes the prompt of a response: all that is needed to count its tokens."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {"conversation": (), "personality": ()}
    reasons: ClassVar[dict[str, str]] = {
        "conversation": "is kept by OpenAI: use `previous_response_id`, or send the items",
        "personality": "is of OpenAI's models: describe it in `instructions`",
    }

    model: str | None = Field(None, description="A served name; may be left out.")
    input: Annotated[
        list[Item],
        Field(fail_fast=True, min_length=1, max_length=4096),
        BeforeValidator(_as_items, json_schema_input_type=str | list[dict[str, Any]]),
    ] = Field(description="A text, or items: messages, function calls and their outputs, reasoning.")
    instructions: str | None = Field(None, description="The system's message, of this response alone.")
    previous_response_id: str | None = Field(None, description="A stored response to go on from.")
    tools: Tools | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice = Field(None, description="Which of them; default auto.")
    parallel_tool_calls: bool | None = Field(None, description="Several calls at once; default true.")
    reasoning: ReasoningConfig | None = Field(None, description="How much the model thinks.")
    text: TextConfig | None = Field(None, description="Free text (the default), a JSON object, or by schema.")
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto drops the oldest turns of an input that is too long; default: refuse it."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables for the chat template.")

    @model_validator(mode="after")
    def _choice_is_there(self) -> ResponsePrompt:
        tool_types.check_choice(self.tool_choice, self.tools or [])
        return self

    def chat_fields(self, items: Sequence[AnyItem]) -> dict[str, Any]:
        """Return the body of a chat request whose conversation are `items`; None is a field left out."""
        instructions = self.instructions
        system = [] if instructions is None else [{"role": "system", "content": instructions}]
        fields = {name: getattr(self, name) for name in _SAME if name in type(self).model_fields}
        if self.text is not None and self.text.format is not None:
            fields["response_format"] = self.text.format.for_chat()
        if self.tools:
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        if is_unfinished(items):
            fields |= {"continue_final_message": True, "add_generation_prompt": False}
        return {
            **fields,
            **tool_types.for_chat(self.tool_choice or "auto", self.tools or []),
            "messages": system + as_messages(items),
            "reasoning_effort": self.reasoning.effort if self.reasoning else None,
        }


class ResponseRequest(ResponsePrompt):
    """Ask for a response."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **{name: UNSUPPORTED[name] for name in ("ec_transfer_params", "kv_transfer_params", "vllm_xargs")},
        "context_management": ([],),
        "conversation": (),
        "enable_response_messages": (False,),
        "media_io_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "moderation": (),
        "previous_input_messages": ([],),
        "prompt": (),
    }
    reasons: ClassVar[dict[str, str]] = {
        **REASONS,
        **ResponsePrompt.reasons,
        "context_management": "is not available: contexts are not compacted here; see `truncation`",
        "enable_response_messages": "is of gpt-oss's own format; `/tokenize` shows a prompt's tokens",
        "media_io_kwargs": "are not taken: images are read in one way",
        "mm_processor_kwargs": "are not taken: images are read as the model was trained",
        "moderation": "is a service of OpenAI's: nothing is moderated here",
        "previous_input_messages": "are of gpt-oss's own format: send `input`",
        "prompt": "is kept by OpenAI: send `instructions` and `input`",
    }
    # `max_tool_calls` counts calls of built-in tools, and there are none; the others are about OpenAI's
    # service, or about images handed between vLLM's servers.
    no_effect: ClassVar[frozenset[str]] = frozenset(
        {
            "max_tool_calls",
            "mm_payload",
            "prompt_cache_options",
            "prompt_cache_retention",
            "return_mm_kwargs",
            "service_tier",
            "session_id",
        }
    )

    stream: bool | None = Field(None, description="Send events as the response is made; default false.")
    stream_options: EventOptions | None = Field(None, description="Only with `stream`.")
    background: bool | None = Field(None, description="Answer at once, and make the response meanwhile.")
    store: bool | None = Field(None, description="Keep the response; default: if the server stores any.")
    include: list[str] | None = Field(None, description=f'"{_LOGPROBS}" adds log-probabilities.')
    top_logprobs: StrictInt | None = Field(None, description="And of so many likely tokens.")
    max_output_tokens: StrictInt | None = Field(None, ge=1, description="Default: the rest of the context.")
    include_reasoning: bool | None = Field(None, description="Show what the model thinks; default true.")
    temperature: float | None = Field(None, description="0 is greedy; default 1.")
    top_p: float | None = Field(None, description="In (0, 1]; default 1.")
    top_k: StrictInt | None = Field(None, description="0 or -1: off; the default.")
    min_p: float | None = Field(None, description="In [0, 1]; default 0.")
    frequency_penalty: float | None = Field(None, description="In [-2, 2]; default 0.")
    presence_penalty: float | None = Field(None, description="In [-2, 2]; default 0.")
    repetition_penalty: float | None = Field(None, description="Above 0; counts the prompt too; default 1.")
    logit_bias: dict[str, float] | None = Field(None, description="Added to the logits, by token id.")
    seed: StrictInt | None = Field(None, description="Makes the answer reproducible.")
    stop: str | Texts | None = Field(None, description="Strings that end the text and are left out of it.")
    stop_token_ids: TokenIds | None = Field(None, description="Tokens that end the text.")
    include_stop_str_in_output: bool | None = Field(None, description="Leave the stop string in the text.")
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-sequence token.")
    skip_special_tokens: bool | None = Field(None, description="Leave special tokens out; default true.")
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's constraint on the text.")
    watermarking: bool | None = Field(None, description="Mark the text as TGI does.")
    priority: StrictInt | None = Field(None, description="The lower, the sooner it runs; default 0.")
    cache_salt: str | None = Field(None, description="Share cached prefixes with the same salt only.")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Comes back with the response.")
    user: str | None = Field(None, description="Comes back with the response.")
    safety_identifier: str | None = Field(None, description="Comes back with the response.")
    prompt_cache_key: str | None = Field(None, description="Comes back with the response.")
    request_id: str | None = Field(
        None, max_length=256, pattern=r"^[A-Za-z0-9_.-]+$", description="Of the response; default: a new one."
    )

    @field_validator("include")
    @classmethod
    def _includable(cls, include: list[str] | None) -> list[str] | None:
        for name in include or ():
            if name not in _INCLUDABLE:
                raise refusal(f"{name[:100]!r} is not one of {', '.join(sorted(_INCLUDABLE))}")
        return include

    @field_validator("metadata")
    @classmethod
    def _short(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        for key, value in (metadata or {}).items():
            if len(key) > 64 or len(value) > 512:
                raise refusal("`metadata` takes keys of 64 characters and values of 512 at most")
        return metadata

    @model_validator(mode="after")
    def _consistent(self) -> ResponseRequest:
        if self.stream_options is not None and not self.stream:
            raise refusal("`stream_options` is only allowed with `stream`: true", "stream_options")
        if self.background and self.store is False:
            raise refusal("`background` needs `store`: true, for nobody waits for the response", "background")
        wanted = self.text.format if self.text else None
        if wanted is not None and wanted.type != "text" and self.structured_outputs is not None:
            raise refusal("`text.format` and `structured_outputs` are both constraints; give one of them")
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Tell whether the text comes with log-probabilities."""
        return _LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def chat_fields(self, items: Sequence[AnyItem]) -> dict[str, Any]:
        """Return the body of a chat request whose conversation are `items`; None is a field left out."""
        fields = super().chat_fields(items)
        if self.structured_outputs is not None:
            fields["structured_outputs"] = self.structured_outputs.model_dump(
                by_alias=True, exclude_none=True
            )
        if self.wants_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return {**fields, "max_completion_tokens": self.max_output_tokens}
