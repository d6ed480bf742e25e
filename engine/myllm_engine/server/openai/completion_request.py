"""Describe the body of `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from ...request import SamplingParams
from ..fields import refusal
from .protocol import REASONS, UNSUPPORTED, GenerationRequest, TokenIds

# Completions of one request, over all its prompts.
_MAX_CHOICES = 1024


def _normalize_prompt(prompt: Any) -> Any:
    """Return a list of prompts: strings or lists of token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise refusal("`prompt` must be a string, a list of strings, or one or more lists of token ids")
    if isinstance(prompt[0], int):
        return [prompt]
    if len(prompt) > _MAX_CHOICES:
        raise refusal(f"`prompt` holds {len(prompt)} prompts; a request may have {_MAX_CHOICES}")
    return prompt


class CompletionRequest(GenerationRequest):
    """Ask for the continuation of one or more prompts."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        **UNSUPPORTED,
        "prompt_embeds": ([],),
        "suffix": ("",),
        "thinking_token_budget": (-1,),
    }
    reasons: ClassVar[dict[str, str]] = {
        **REASONS,
        "prompt_embeds": "are not taken: send `prompt` as text or as token ids",
        "suffix": "is not taken: models that fill in the middle have a format of their own for it: write "
        "`prompt` in that",
        "thinking_token_budget": "is of chats: thoughts are not told apart in completions",
    }

    prompt: Annotated[
        Sequence[str | TokenIds],
        BeforeValidator(
            _normalize_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]]
        ),
    ] = Field(description="A text, several texts, or token ids in place of a text.")
    logprobs: StrictInt | None = Field(None, description="Log-probabilities of so many likely tokens.")
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    add_special_tokens: bool | None = Field(None, description="Tokenize with the model's BOS; default true.")

    @model_validator(mode="after")
    def _few_choices(self) -> CompletionRequest:
        each = max(self.n or 1, self.best_of or 1)
        if len(self.prompt) * each > _MAX_CHOICES:
            name = "n" if each == self.n else "best_of"
            raise refusal(
                f"{len(self.prompt)} prompts with `{name}` {each} make {len(self.prompt) * each} "
                f"completions; a request may have {_MAX_CHOICES}",
                name,
            )
        return self

    @property
    def asks_for_prompt(self) -> bool:
        """See `GenerationRequest.asks_for_prompt`."""
        return bool(self.echo) or super().asks_for_prompt

    def sampling_params(self, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """See `GenerationRequest.sampling_params`; an echoed prompt has log-probabilities, too."""
        params = super().sampling_params(max_tokens=max_tokens, logprobs=logprobs)
        if self.echo and logprobs is not None:
            params = replace(params, prompt_logprobs=max(logprobs, self.prompt_logprobs or 0))
        return params
