"""Describe the bodies of TGI's API, check them as TGI's router does, and translate them for the engine.

The rules and their words are those of router/src/validation.rs.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt

from ...constraint import Structured
from ...request import SamplingParams
from ..errors import invalid
from ..fields import StrictModel
from ..settings import ServerSettings


class Grammar(StrictModel):
    """Hold a constraint on the text: a JSON Schema, alone or as OpenAI wraps it, or a regular expression."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: Any

    def structured(self) -> Structured:
        """Return the engine's constraint.

        Raises:
            InvalidRequestError: the value is of a wrong type.
            ProblemError: it is too large.
        """
        if self.type == "regex":
            return Structured.regex(self.value, param="grammar")
        schema = self.value
        if self.type == "json_schema" and isinstance(schema, dict):
            schema = schema.get("schema", schema)
        return Structured.json_schema(schema, param="grammar")


class Parameters(StrictModel):
    """Hold the sampling parameters of a request. A null is an absent field."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {
        "adapter_id": (),
        "decoder_input_details": (False,),
        "watermark": (False,),
    }

    best_of: StrictInt | None = Field(None, description="Make so many, return the likeliest; default 1.")
    temperature: float | None = Field(None, description="Above 0.")
    repetition_penalty: float | None = Field(None, description="Above 0; default 1.")
    frequency_penalty: float | None = Field(None, description="In [-2, 2]; default 0.")
    top_k: StrictInt | None = Field(None, description="Above 0.")
    top_p: float | None = Field(None, description="In (0, 1).")
    typical_p: float | None = Field(None, description="In (0, 1).")
    do_sample: bool | None = Field(None, description="Sample; else greedy, unless a parameter implies it.")
    max_new_tokens: StrictInt | None = Field(None, description="Default: the rest of the context.")
    return_full_text: bool | None = Field(None, description="Begin the text with the prompt.")
    stop: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="Strings that end the text; they stay in it."
    )
    truncate: StrictInt | None = Field(None, description="Keep only the last so many tokens of the prompt.")
    details: bool | None = Field(None, description="Give the tokens and why the text ended.")
    top_n_tokens: StrictInt | None = Field(None, description="Give the likeliest tokens at each place.")
    seed: StrictInt | None = Field(None, description="Makes the answer reproducible.")
    grammar: Grammar | None = Field(None, description="What the text must look like.")


class GenerateRequest(StrictModel):
    """Ask for the continuation of a text."""

    inputs: str
    parameters: Parameters | None = None

    @property
    def params(self) -> Parameters:
        """Return the parameters, present or not."""
        return self.parameters or Parameters()

    @property
    def samples(self) -> bool:
        """Tell whether to sample. Without `parameters` TGI does; with them, only if one of them says so."""
        if self.parameters is None:
            return True
        p = self.parameters
        implied = (p.temperature, p.top_k, p.top_p, p.typical_p)
        return bool(p.do_sample) or any(value is not None for value in implied)


class CompatRequest(GenerateRequest):
    """Ask for a text, or for a stream with `stream`: the body of `POST /`."""

    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold a checked request, ready for the engine.

    Attributes:
        sampling: the engine's parameters.
        seed: the seed to report: the request's or a random one; None when greedy.
    """

    sampling: SamplingParams
    seed: int | None


def plan(request: GenerateRequest, settings: ServerSettings, *, max_model_len: int, stream: bool) -> Plan:
    """Check a request and translate it.

    Raises:
        ProblemError: with TGI's words.
        InvalidRequestError: for a value that TGI lets pass and the engine does not.
    """
    p = request.params
    _check_ranges(p)
    best_of = 1 if p.best_of is None else p.best_of
    if not 0 < best_of <= settings.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {best_of}", "best_of")
    if best_of > 1:
        if not request.samples:
            raise invalid("you must use sampling when `best_of` is > 1", "best_of")
        if p.seed is not None:
            raise invalid("`seed` must not be set when `best_of` > 1", "seed")
        if stream:
            raise invalid("`best_of` != 1 is not supported when streaming tokens", "best_of")
    top_n = p.top_n_tokens or 0
    if not 0 <= top_n <= settings.max_top_n_tokens:
        raise invalid(
            f"`top_n_tokens` must be >= 0 and <= {settings.max_top_n_tokens}. Given: {top_n}", "top_n_tokens"
        )
    stop = p.stop or []
    if len(stop) > settings.max_stop_sequences:
        raise invalid(
            f"`stop` supports up to {settings.max_stop_sequences} stop sequences. Given: {len(stop)}", "stop"
        )
    # `max_input_tokens`, TGI's bound, leaves room for one new token.
    if p.truncate is not None and not 0 < p.truncate < max_model_len:
        raise invalid(
            f"`truncate` must be strictly positive and less than {max_model_len}. Given: {p.truncate}",
            "truncate",
        )
    seed = None
    if request.samples:
        # JSON numbers above 2**53 lose digits in JavaScript; the seed is there to be sent back.
        seed = secrets.randbits(53) if p.seed is None else p.seed
    sampling = SamplingParams(
        max_tokens=p.max_new_tokens,
        temperature=(1.0 if p.temperature is None else p.temperature) if request.samples else 0.0,
        top_k=p.top_k or 0,
        top_p=1.0 if p.top_p is None else p.top_p,
        typical_p=1.0 if p.typical_p is None else p.typical_p,
        repetition_penalty=1.0 if p.repetition_penalty is None else p.repetition_penalty,
        frequency_penalty=p.frequency_penalty or 0.0,
        seed=seed,
        n=best_of,
        stop=stop,
        include_stop_str_in_output=True,
        logprobs=top_n,
        structured=p.grammar.structured() if p.grammar else None,
    )
    return Plan(sampling, seed)


def _check_ranges(p: Parameters) -> None:
    if p.temperature is not None and p.temperature <= 0:
        raise invalid("`temperature` must be strictly positive", "temperature")
    if p.repetition_penalty is not None and p.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive", "repetition_penalty")
    if p.frequency_penalty is not None and not -2 <= p.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0", "frequency_penalty")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0", "top_p")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive", "top_k")
    if p.typical_p is not None and not 0 < p.typical_p < 1:
        raise invalid("`typical_p` must be > 0.0 and < 1.0", "typical_p")
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise invalid("`max_new_tokens` must be strictly positive", "max_new_tokens")


def check_length(prompt_tokens: int, max_new_tokens: int | None, max_model_len: int) -> None:
    """Refuse what does not fit into the context, in TGI's words."""
    if prompt_tokens >= max_model_len:
        raise invalid(
            f"`inputs` must have less than {max_model_len} tokens. Given: {prompt_tokens}", "inputs"
        )
    if max_new_tokens is not None and prompt_tokens + max_new_tokens > max_model_len:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {max_model_len}. "
            f"Given: {prompt_tokens} `inputs` tokens and {max_new_tokens} `max_new_tokens`",
            "max_new_tokens",
        )
