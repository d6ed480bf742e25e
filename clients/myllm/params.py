"""The one strict parameter set.

Canonical names are OpenAI's and vLLM's sampling names; a dialect translates them into its server's words
(or refuses them). A name that is not here is an error with the nearest name, never dropped: silent
parameter loss is the most reported pain with self-hosted servers (vllm#53975, outlines#1887).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic import ValidationError as PydanticValidationError

from .errors import InvalidParameterError, UnknownParameterError


class Parameters(BaseModel):
    """What a call may set. `None` means "not set": the server's default holds and nothing is sent."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # How long and how many.
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1)
    best_of: int | None = Field(None, ge=1)
    # How to sample.
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="0 or -1: off")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    # When to stop.
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    # What to answer.
    logprobs: bool | int | None = None
    top_logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    suffix: str | None = None
    skip_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def set_values(self) -> dict[str, Any]:
        """Return the parameters that are set, by canonical name."""
        return {name: value for name, value in self.__dict__.items() if value is not None}

    @property
    def wanted_logprobs(self) -> int | None:
        """Number of alternatives to report at each token (0: the chosen token alone), or None for none."""
        if self.logprobs is None or self.logprobs is False:
            return self.top_logprobs or None
        if self.logprobs is True:
            return self.top_logprobs or 0
        return max(self.logprobs, self.top_logprobs or 0)


ALIASES: dict[str, str] = {
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "stop_sequences": "stop",
}
"""Other libraries' names for the same thing; `do_sample` is read too, in `build`."""

_HABITS = {
    "stream": "Use `stream_chat` or `stream_complete`.",
    "system": 'Begin `messages` with {"role": "system", "content": …}.',
    "system_prompt": 'Begin `messages` with {"role": "system", "content": …}.',
    "port": "Give the port in the URL: `http://localhost:8000`.",
    "url": "It is called `base_url`.",
    "api_base": "It is called `base_url`.",
    "apikey": "It is called `api_key`.",
    "retries": "It is called `max_retries`.",
    "num_retries": "It is called `max_retries`.",
}
"""What other libraries call things; `extra_body` would be bad advice for these."""
_CALL_OPTIONS = frozenset({"extra_body", "extra_headers"})
KNOWN_NAMES = frozenset(Parameters.model_fields) | frozenset(ALIASES) | {"do_sample"}


def build(call: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> Parameters:
    """Build the parameters of one call from what it says and the client's defaults.

    A call's value wins over a default, whichever of its names either was given under; `None` in a call
    removes a default.

    Raises:
        UnknownParameterError: a name that is neither canonical nor an alias.
        InvalidParameterError: a value out of range or of a wrong type, or two names of one parameter
            with different values.
    """
    values = canonical(defaults or {})
    values.update(canonical(call))
    try:
        return Parameters(**values)
    except PydanticValidationError as exc:
        raise _readable(exc, values) from None


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate aliases into canonical names; refuse unknown names and contradictions."""
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for name, value in given.items():
        if name not in KNOWN_NAMES:
            raise unknown_parameter(name)
        if name == "do_sample":
            continue
        target = ALIASES.get(name, name)
        if target in values and values[target] != value:
            raise InvalidParameterError(
                f"`{source[target]}={values[target]!r}` and `{name}={value!r}` are two names of one "
                "parameter and contradict each other: give one of them.",
                param=name,
            )
        values[target], source[target] = value, name
    _apply_do_sample(given.get("do_sample"), values)
    return values


def _apply_do_sample(do_sample: bool | None, values: dict[str, Any]) -> None:
    """Say `do_sample` (transformers, TGI) with `temperature`: 0 is greedy, anything above samples."""
    if do_sample is None:
        return
    temperature = values.get("temperature")
    if do_sample and temperature == 0:
        raise InvalidParameterError(
            "`do_sample=True` contradicts `temperature=0`, which is greedy.", param="do_sample"
        )
    if not do_sample and temperature:
        raise InvalidParameterError(
            f"`do_sample=False` contradicts `temperature={temperature!r}`: leave one of them out.",
            param="do_sample",
        )
    values.setdefault("temperature", 1.0 if do_sample else 0.0)


def unknown_parameter(name: str) -> UnknownParameterError:
    """Return the error for a name that no parameter has."""
    if name in _CALL_OPTIONS:
        return UnknownParameterError(
            f"`{name}` is no parameter of a model but an option of the call.",
            param=name,
            hint="Give it to the call itself (`client.chat(…)`), not as a default.",
        )
    if name in _HABITS:
        return UnknownParameterError(f"Unknown parameter `{name}`.", param=name, hint=_HABITS[name])
    near = difflib.get_close_matches(name, sorted(KNOWN_NAMES), n=1)
    guess = f" Did you mean `{near[0]}`?" if near else ""
    return UnknownParameterError(
        f"Unknown parameter `{name}`.{guess}",
        param=name,
        hint=f"To send a field as it is, use `extra_body={{{name!r}: …}}`.",
    )


def _readable(exc: PydanticValidationError, values: Mapping[str, Any]) -> InvalidParameterError:
    first = exc.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0])
    inside = "".join(f"[{part!r}]" for part in first["loc"][1:] if part != "[key]")
    at = f" at `{name}{inside}`" if inside else ""
    return InvalidParameterError(f"`{name}={values.get(name)!r}`:{at} {first['msg'].lower()}.", param=name)
