"""Parameters on their way through DSPy.

DSPy reads an LM's keywords with a reader that knows OpenAI's and refuses the rest (`min_p`,
`repetition_penalty`, …), but hands on `metadata` untouched. What it does not know therefore travels inside
`metadata`, under `PACK`: so it reaches the engine, is part of the cache key, and survives `copy()` and
`Predict(…, min_p=0.1)`. A name that nobody knows is refused here, with the nearest one. Beside it, under
`SERVERS`, stands where the LM sends, which DSPy's cache key does not have by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from myllm import InvalidParameterError, params

PACK = "__myllm__"
SERVERS = "__servers__"

# What `dspy.lm15.request_from_openai_chat` carries with the same meaning. Not `top_k`, whose 0 and -1 it
# refuses, nor `chat_template_kwargs`, of which it knows one.
_NATIVE = frozenset(
    {"max_tokens", "temperature", "top_p", "n", "stop", "seed", "frequency_penalty", "presence_penalty",
     "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "parallel_tool_calls",
     "reasoning_effort", "user"}
)  # fmt: skip
# What DSPy keeps to itself.
_CONTROLS = frozenset({"cache", "rollout_id", "request"})
# Richer in DSPy than on the wire (a pydantic class, …): checked when the request is made.
_CHECKED_LATER = frozenset({"response_format", "tools", "tool_choice"})


def pack(given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return keywords that DSPy's reader understands, for keywords that the SDK understands.

    Args:
        given: parameters by any of their names, `extra_body`, and DSPy's own controls; `None` removes a
            default.
        defaults: the LM's own keywords, already packed; what they pack is kept unless given anew.

    Raises:
        UnknownParameterError: a name that neither DSPy nor the SDK knows.
        InvalidParameterError: a value out of range, or two names of one parameter that contradict.
    """
    out = {name: value for name, value in given.items() if name in _CONTROLS}
    rest = {name: value for name, value in given.items() if name not in _CONTROLS}
    extra: dict[str, Any] = {}
    if "extra_body" in rest:
        extra["extra_body"] = _checked_body(rest.pop("extra_body"))
    values = params.canonical(rest)
    checked = params.build({name: value for name, value in values.items() if name not in _CHECKED_LATER})
    if checked.json_schema is not None:
        values["json_schema"] = checked.json_schema  # of a class
    _spell_logprobs(values)
    if values.get("logit_bias"):
        values["logit_bias"] = {
            str(token): bias for token, bias in values["logit_bias"].items()
        }  # JSON's keys
    kept = packed(defaults or {})
    if any(values.get(name) is not None for name in params.SHAPES):
        # As in the SDK: what a call says about its answer's look goes before all that the LM says about it.
        extra.update(dict.fromkeys(kept.keys() & params.SHAPES))
        values.setdefault("response_format", None)
    for name, value in values.items():
        if name not in _NATIVE:
            extra[name] = value
        elif value is not None or (defaults or {}).get(name) is not None:  # else there is nothing to remove
            out[name] = value
    if extra:
        merged = {name: value for name, value in {**kept, **extra}.items() if value is not None}
        rest = {name: value for name, value in _metadata(defaults or {}).items() if name != PACK}
        # An empty pack and none are the same request, and should be the same cache entry.
        out["metadata"] = {**rest, **({PACK: merged} if merged else {})} or None
    return out


def packed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an LM's keywords hold packed."""
    return dict(_metadata(kwargs).get(PACK) or {})


def _metadata(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    return kwargs.get("metadata") or {}


def wire(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return only the parameters that go to a server, as they were given to `pack`."""
    flat = {name: value for name, value in kwargs.items() if name not in _CONTROLS and value is not None}
    flat.pop("metadata", None)
    return {**flat, **packed(kwargs)}


def _checked_body(body: Any) -> dict[str, Any] | None:
    if body is not None and not isinstance(body, Mapping):
        raise InvalidParameterError(f"`extra_body={body!r}` must be a mapping.", param="extra_body")
    return dict(body) if body else None


def _spell_logprobs(values: dict[str, Any]) -> None:
    """Say `logprobs=5` and `top_logprobs=5` in DSPy's words, which are OpenAI's: `logprobs=True` as well."""
    wanted = values.get("logprobs")
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        values["top_logprobs"] = max(wanted, values.get("top_logprobs") or 0)
        values["logprobs"] = True
    elif wanted is None and values.get("top_logprobs"):
        values["logprobs"] = True
