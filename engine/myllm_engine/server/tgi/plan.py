"""Check TGI's requests as its router does, in its words, and translate them for the engine.

The rules are those of router/src/validation.rs.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from ...request import SamplingParams
from ..errors import invalid
from ..settings import ServerContext, ServerSettings
from .protocol import GenerateRequest, Parameters

_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold a checked request, ready for the engine.

    Attributes:
        sampling: the engine's parameters.
        seed: the seed to report: the request's or a random one; None when greedy.
    """

    sampling: SamplingParams
    seed: int | None

    def seed_of(self, index: int) -> int | None:
        """Return the seed that gives sequence `index` alone."""
        return None if self.seed is None else (self.seed + index) % _SEEDS


def plan(request: GenerateRequest, context: ServerContext, *, stream: bool) -> Plan:
    """Check a request, apart from the length of its text, and translate it.

    Raises:
        ProblemError: with TGI's words.
        InvalidRequestError: for a value that TGI lets pass and the engine does not.
    """
    p, settings = request.params, context.settings
    best_of = 1 if p.best_of is None else p.best_of
    if stream:
        _check_stream(p, best_of)
    _check_best_of(request, best_of, settings)
    _check_ranges(p)
    _check_limits(p, settings)
    if not request.inputs:
        raise invalid("`inputs` cannot be empty", "inputs")
    limit = max_input_tokens(context)
    if p.truncate is not None and not 0 < p.truncate <= limit:
        raise invalid(
            f"`truncate` must be strictly positive and less than {limit}. Given: {p.truncate}", "truncate"
        )
    if p.adapter_id is not None and p.adapter_id not in context.engine.loras:
        known = ", ".join(map(repr, context.engine.loras)) or "none"
        raise invalid(
            f"`adapter_id` {p.adapter_id[:200]!r} is not loaded; the adapters are: {known}", "adapter_id"
        )
    seed = None
    if request.samples:
        # JSON numbers above 2**53 lose digits in JavaScript; the seed is there to be sent back.
        seed = secrets.randbits(53) if p.seed is None else p.seed
    return Plan(_sampling_params(request, best_of, seed), seed)


def max_input_tokens(context: ServerContext) -> int:
    """Return the length of the longest prompt: with room for one new token, or as it is set."""
    most = context.engine.max_model_len - 1
    limit = context.settings.max_input_tokens
    return most if limit is None else min(most, limit)


def check_length(context: ServerContext, prompt_tokens: int, max_new_tokens: int | None) -> None:
    """Refuse what does not fit into the context, in TGI's words."""
    total = context.engine.max_model_len
    if max_new_tokens is not None and prompt_tokens + max_new_tokens > total:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {total}. "
            f"Given: {prompt_tokens} `inputs` tokens and {max_new_tokens} `max_new_tokens`",
            "max_new_tokens",
        )
    limit = max_input_tokens(context)
    if prompt_tokens > limit:
        raise invalid(f"`inputs` must have less than {limit} tokens. Given: {prompt_tokens}", "inputs")


def _sampling_params(request: GenerateRequest, best_of: int, seed: int | None) -> SamplingParams:
    p = request.params
    if seed is not None and seed >= _SEEDS // 2:
        seed -= _SEEDS  # the engine's seeds have a sign
    return SamplingParams(
        max_tokens=p.max_new_tokens,
        temperature=(1.0 if p.temperature is None else p.temperature) if request.samples else 0.0,
        top_k=p.top_k or 0,
        top_p=1.0 if p.top_p is None else p.top_p,
        typical_p=1.0 if p.typical_p is None else p.typical_p,
        repetition_penalty=1.0 if p.repetition_penalty is None else p.repetition_penalty,
        frequency_penalty=p.frequency_penalty or 0.0,
        watermark=bool(p.watermark),
        seed=seed,
        n=best_of,
        stop=p.stop or [],
        include_stop_str_in_output=True,
        logprobs=p.top_n_tokens or 0,
        prompt_logprobs=0 if p.decoder_input_details else None,
        structured=p.grammar.structured() if p.grammar else None,
    )


def _check_stream(p: Parameters, best_of: int) -> None:
    if best_of != 1:
        raise invalid("`best_of` != 1 is not supported when streaming tokens", "best_of")
    if p.decoder_input_details:
        raise invalid(
            "`decoder_input_details` == true is not supported when streaming tokens", "decoder_input_details"
        )


def _check_best_of(request: GenerateRequest, best_of: int, settings: ServerSettings) -> None:
    if best_of != 1 and settings.max_best_of == 1:
        raise invalid("`best_of` != 1 is not allowed for this endpoint", "best_of")
    if not 0 < best_of <= settings.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {settings.max_best_of}. Given: {best_of}", "best_of")
    if best_of > 1 and not request.samples:
        raise invalid("you must use sampling when `best_of` is > 1", "best_of")
    if best_of > 1 and request.params.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1", "seed")
    returned = request.params.num_return_sequences
    if returned not in (None, 1, best_of):
        raise invalid(
            f"`num_return_sequences` must be 1 or `best_of`, here {best_of}: with `details` all of "
            f"`best_of` are returned. Given: {returned}",
            "num_return_sequences",
        )


def _check_ranges(p: Parameters) -> None:
    if p.temperature is not None and p.temperature <= 0:
        raise invalid("`temperature` must be strictly positive", "temperature")
    if p.repetition_penalty is not None and p.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive", "repetition_penalty")
    if p.frequency_penalty is not None and not -2 <= p.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0", "frequency_penalty")
    if p.top_p is not None and not 0 < p.top_p < 1:
        raise invalid("`top_p` must be > 0.0 and < 1.0", "top_p")
    if p.typical_p is not None and not 0 < p.typical_p < 1:
        raise invalid("`typical_p` must be > 0.0 and < 1.0", "typical_p")
    if p.top_k is not None and p.top_k <= 0:
        raise invalid("`top_k` must be strictly positive", "top_k")
    if p.max_new_tokens is not None and p.max_new_tokens <= 0:
        raise invalid("`max_new_tokens` must be strictly positive", "max_new_tokens")
    if p.seed is not None and not 0 <= p.seed < _SEEDS:
        raise invalid(f"`seed` must be >= 0 and < {_SEEDS}. Given: {p.seed}", "seed")


def _check_limits(p: Parameters, settings: ServerSettings) -> None:
    stop = p.stop or []
    if len(stop) > settings.max_stop_sequences:
        raise invalid(
            f"`stop` supports up to {settings.max_stop_sequences} stop sequences. Given: {len(stop)}", "stop"
        )
    top_n, most = p.top_n_tokens or 0, settings.max_top_n_tokens
    if not 0 <= top_n <= most:
        raise invalid(f"`top_n_tokens` must be >= 0 and <= {most}. Given: {top_n}", "top_n_tokens")
