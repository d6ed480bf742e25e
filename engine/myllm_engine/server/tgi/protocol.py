"""Describe the bodies of TGI's API.

Source: router/src/lib.rs of TGI 3.3, `GenerateRequest` and what it holds. `plan` checks the values.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictInt

from ...constraint import Structured
from ...errors import InvalidRequestError
from ..errors import invalid
from ..fields import StrictModel


class Grammar(StrictModel):
    """Hold a constraint on the text: a JSON Schema, alone or as OpenAI wraps it, or a regular expression."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: Any

    def structured(self, param: str = "grammar") -> Structured:
        """Return the engine's constraint; `param` is the field that holds it, for messages.

        Raises:
            ProblemError: the value is of a wrong type.
        """
        schema = self.value
        if self.type == "json_schema" and isinstance(schema, dict):
            schema = schema.get("schema", schema)
        try:
            if self.type == "regex":
                return Structured.regex(self.value, param=param)
            return Structured.json_schema(schema, param=param)
        except InvalidRequestError as error:
            raise invalid(f"grammar is not valid: {error}", param) from error


class Parameters(StrictModel):
    """Hold the sampling parameters of a request. A null is an absent field."""

    # What DSPy's `HFClientTGI` remembers for itself and sends along.
    no_effect: ClassVar[frozenset[str]] = frozenset({"port", "url"})

    adapter_id: str | None = Field(None, description="Name of a LoRA adapter; default: the model as it is.")
    best_of: StrictInt | None = Field(None, description="Make so many, return the likeliest; default 1.")
    num_return_sequences: StrictInt | None = Field(
        None, description="As DSPy's `HFClientTGI` sends it: `best_of` again, or 1."
    )
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
    watermark: bool | None = Field(None, description="Mark the text (arXiv:2301.10226).")
    details: bool | None = Field(None, description="Give the tokens and why the text ended.")
    decoder_input_details: bool | None = Field(
        None, description="And the prompt's tokens with their log-probabilities; not in streams."
    )
    top_n_tokens: StrictInt | None = Field(None, description="Give the likeliest tokens at each place.")
    seed: StrictInt | None = Field(None, description="Makes the answer reproducible; in [0, 2**64).")
    grammar: Grammar | None = Field(None, description="What the text must look like.")


class GenerateRequest(StrictModel):
    """Ask for the continuation of a text."""

    inputs: str
    parameters: Parameters | None = None
    stream: bool | None = Field(
        None, description="Of `/`: answer with a stream; other routes have no choice."
    )

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

    def defaulting(self, **parameters: bool) -> GenerateRequest:
        """Return the request with these parameters where it leaves them open; it samples as it did."""
        given = self.params
        update = {name: value for name, value in parameters.items() if getattr(given, name) is None}
        if self.parameters is None:
            update.setdefault("do_sample", True)
        return self.model_copy(update={"parameters": given.model_copy(update=update)})
