"""The one strict parameter set.

Canonical names are OpenAI's and vLLM's sampling names; a dialect translates them into its server's words
(or refuses them). A name that is not here is an error with the nearest name, never dropped: silent
parameter loss is the most reported pain with self-hosted servers (vllm#53975, outlines#1887).

What is here is what the published request types of the six kinds of server share or have kept for years
(vLLM `vllm/entrypoints/openai/*/protocol.py` 0.6 to 0.32, TGI `router/src/lib.rs` 3.3, OpenAI's API
reference); what one version of one server knows goes into `extra_body`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from pydantic import ValidationError as PydanticValidationError

from .errors import InvalidParameterError, UnknownParameterError, short


def _tuple_is_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


_INT64 = 2**63
_Listed = BeforeValidator(_tuple_is_list)
_Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[_Text], _Listed]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], _Listed]
# JSON has only texts for keys.
_TokenKey = Annotated[int, Field(ge=0, strict=False)]


class Parameters(BaseModel):
    """What a call may set. `None` means "not set": the server's default holds and nothing is sent.

    Made by `build`. Types are strict: `True` is no number and "5" no count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

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
    repeat_last_n: int | None = Field(None, ge=-1, description="tokens that penalties look back on")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    mirostat: Literal[0, 1, 2] | None = None
    mirostat_tau: float | None = Field(None, ge=0)
    mirostat_eta: float | None = Field(None, ge=0)
    logit_bias: dict[_TokenKey, Annotated[float, Field(ge=-100, le=100)]] | None = None
    bad_words: Texts | None = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)
    watermark: bool | None = None
    # Beam search; `n` is then the width of the beam.
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    # When to stop.
    stop: Texts | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    # What to answer.
    logprobs: bool | Annotated[int, Field(ge=0)] | None = None
    top_logprobs: int | None = Field(None, ge=0)
    prompt_logprobs: int | None = Field(None, ge=-1, description="-1: the whole vocabulary")
    echo: bool | None = None
    suffix: str | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    # What the answer must look like: at most one of these five.
    json_schema: dict[str, Any] | None = None
    regex: _Text | None = None
    choice: Annotated[Texts, Field(min_length=1)] | None = None
    grammar: _Text | None = None
    response_format: dict[str, Any] | None = None
    # How the prompt is made.
    truncate_prompt_tokens: int | None = Field(None, ge=-1, description="-1: what fits the model")
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: _Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: Annotated[list[dict[str, Any]], _Listed] | None = None
    # Tools and reasoning.
    tools: Annotated[list[dict[str, Any]], _Listed] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    # For the server's books.
    priority: int | None = Field(None, ge=-_INT64, lt=_INT64, description="lower is served earlier")
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _a_token_has_one_bias(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and len(set(map(str, value))) < len(value):
            raise InvalidParameterError(
                f"`logit_bias={short(value)}` has a token twice, as a number and as a text.",
                param="logit_bias",
            )
        return value

    @field_validator("response_format", mode="before")
    @classmethod
    def _a_class_is_a_schema(cls, value: Any) -> Any:
        if isinstance(value, type):
            raise InvalidParameterError(
                f"`response_format={value.__name__}`: give a class as `json_schema={value.__name__}`, "
                "or call `client.parse`.",
                param="response_format",
            )
        form = value.get("json_schema") if isinstance(value, Mapping) else None
        if form is not None and not isinstance(form, Mapping):
            raise InvalidParameterError(
                f"`response_format`: `json_schema` must be a mapping with the schema in it: {short(form)}.",
                param="response_format",
                hint="{'type': 'json_schema', 'json_schema': {'name': …, 'schema': …}}, or `json_schema=…`.",
            )
        return value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _schema_is_valid(cls, value: Any) -> Any:
        if value is None:
            return None
        from .constraints import checked_schema  # brings jsonschema, which most calls never need

        return checked_schema(value)

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


PARAMETER_NAMES: tuple[str, ...] = tuple(Parameters.model_fields)
"""The canonical names."""

ALIASES: dict[str, str] = {
    # TGI, transformers and SGLang; OpenAI; Ollama; llama.cpp
    "max_new_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "num_predict": "max_tokens",
    "n_predict": "max_tokens",
    # transformers and SGLang
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    # llama.cpp and Ollama
    "repeat_penalty": "repetition_penalty",
    # TGI's clients; transformers
    "stop_sequences": "stop",
    "stop_strings": "stop",
    # SGLang
    "no_stop_trim": "include_stop_str_in_output",
    # TGI; llama.cpp
    "top_n_tokens": "logprobs",
    "n_probs": "logprobs",
    # TGI and transformers
    "return_full_text": "echo",
    "truncate": "truncate_prompt_tokens",
    # vLLM before 0.12; SGLang
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "ebnf": "grammar",
}
"""Other names for the same thing; `do_sample` (TGI, transformers) is read too, in `build`."""

CONSTRAINTS = ("json_schema", "regex", "choice", "grammar")
"""What the answer must look like, in our one spelling; the dialect writes the server's."""
SHAPES = frozenset({*CONSTRAINTS, "response_format"})
"""The parameters of which a call has one at most."""

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
    "structured_outputs": "Say it as `json_schema=`, `regex=`, `choice=` or `grammar=`.",
    "guided_decoding_backend": "Servers choose it when they start: `--structured-outputs-config`.",
    "format": "Say it as `json_schema=…`, or as `response_format={'type': 'json_object'}`.",
    "early_stopping": "No server reads it any more: vLLM removed it, and beam search stops as it likes.",
    "functions": "It is called `tools`.",
    "function_call": "It is called `tool_choice`.",
}
"""What other libraries call things; `extra_body` would be bad advice for these."""
_CALL_OPTIONS = frozenset({"extra_body", "extra_headers", "session"})
_CLIENT_OPTIONS = frozenset(
    {"api_key", "base_url", "endpoints", "dialect", "headers", "http", "policy", "breaker", "health_interval",
     "max_concurrency", "requests_per_second", "hooks", "max_retries", "hedge_after", "coalesce",
     "message_policy"}
)  # fmt: skip
KNOWN_NAMES = frozenset(PARAMETER_NAMES) | frozenset(ALIASES) | {"do_sample"}
"""Every name that a call may use."""

NOTHING = Parameters()
"""Parameters of which none is set."""


def build(call: Mapping[str, Any], defaults: Mapping[str, Any] | Parameters | None = None) -> Parameters:
    """Build the parameters of one call from what it says and the client's defaults.

    A call's value wins over a default, whichever of its names either was given under; `None` in a call
    removes a default. A call that says what its answer must look like (`json_schema`, `regex`, `choice`,
    `grammar`, `response_format`) removes what the defaults say about that. Defaults that `build` has
    checked before (a `Parameters`) are not checked again: a call that sets nothing shares them.

    Raises:
        UnknownParameterError: a name that is neither canonical nor an alias.
        InvalidParameterError: a value out of range or of a wrong type, two names of one parameter with
            different values, or two answers' shapes.
    """
    if isinstance(defaults, Parameters):
        if not call:
            return defaults
        values = defaults.set_values()
    elif defaults:
        values = canonical(defaults)
    elif not call:
        return NOTHING
    else:
        values = {}
    if call:
        given = canonical(call)
        if values and any(given.get(name) is not None for name in SHAPES):
            values = {name: value for name, value in values.items() if name not in SHAPES}
        values.update(given)
    try:
        params = Parameters(**values)
    except PydanticValidationError as exc:
        raise _readable(exc, values) from None
    if not SHAPES.isdisjoint(values):
        _check_one_shape(params)
    return params


def _check_one_shape(params: Parameters) -> None:
    shapes = [name for name in (*CONSTRAINTS, "response_format") if getattr(params, name) is not None]
    if len(shapes) > 1:
        raise InvalidParameterError(
            f"{' and '.join(f'`{name}`' for name in shapes)} all say what the answer must look like: "
            "give one of them.",
            param=shapes[1],
        )


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """Translate aliases into canonical names; refuse unknown names and contradictions."""
    if KNOWN_NAMES.issuperset(given) and not _SPECIAL.intersection(given):
        return dict(given)
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for name, value in given.items():
        if name not in KNOWN_NAMES:
            raise unknown_parameter(name)
        if name == "do_sample":
            continue
        target = ALIASES.get(name, name)
        if value is None and target in values:
            continue  # not set, under this name
        if values.get(target) is not None and values[target] != value:
            raise InvalidParameterError(
                f"`{source[target]}={short(values[target])}` and `{name}={short(value)}` are two names of "
                "one parameter and contradict each other: give one of them.",
                param=name,
            )
        values[target], source[target] = value, name
    _apply_do_sample(given.get("do_sample"), values)
    return values


_SPECIAL = frozenset(ALIASES) | {"do_sample"}


def _apply_do_sample(do_sample: Any, values: dict[str, Any]) -> None:
    """Say `do_sample` (transformers, TGI) with `temperature`: 0 is greedy, anything above samples."""
    if do_sample is None:
        return
    if not isinstance(do_sample, bool):
        raise InvalidParameterError(
            f"`do_sample={short(do_sample)}` must be True or False.", param="do_sample"
        )
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
    if temperature is None:
        values["temperature"] = 1.0 if do_sample else 0.0


def unknown_parameter(name: str) -> UnknownParameterError:
    """Return the error for a name that no parameter has."""
    if name in _CALL_OPTIONS:
        return UnknownParameterError(
            f"`{name}` is no parameter of a model but an option of the call.",
            param=name,
            hint="Give it to the call itself (`client.chat(…)`), not as a default.",
        )
    if name in _CLIENT_OPTIONS:
        return UnknownParameterError(
            f"`{name}` is no parameter of a model but an option of the client.",
            param=name,
            hint=f"Say it when the client is made: `Client({name}=…)`.",
        )
    if name in _HABITS:
        return UnknownParameterError(f"Unknown parameter `{name}`.", param=name, hint=_HABITS[name])
    near = difflib.get_close_matches(name, sorted(KNOWN_NAMES | _CALL_OPTIONS), n=1)
    guess = f" Did you mean `{near[0]}`?" if near else ""
    return UnknownParameterError(
        f"Unknown parameter `{name}`.{guess}",
        param=name,
        hint=f"To send a field as it is, use `extra_body={{{name!r}: …}}`.",
    )


def _readable(exc: PydanticValidationError, values: Mapping[str, Any]) -> InvalidParameterError:
    first = exc.errors(include_url=False)[0]
    if isinstance(ours := first.get("ctx", {}).get("error"), InvalidParameterError):
        return ours
    name = str(first["loc"][0])
    inside = "".join(f"[{part!r}]" for part in first["loc"][1:] if part != "[key]")
    at = f" at `{name}{inside}`" if inside else ""
    return InvalidParameterError(
        f"`{name}={short(values.get(name))}`:{at} {first['msg'].lower()}.", param=name
    )
