"""What of a call decides its answer, which answers are kept, and how one is written down."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidParameterError
from ..types import Answer, ChatCompletion, Completion, Detokenized, Embeddings, Response, Tokens
from ..wire import Call, Kind

_FORMAT = 1
"""Of keys and values: a release that writes others raises it, and then finds nothing of the old ones."""
_FINISHED = frozenset({"stop", "length", "tool_calls", "function_call"})
_ANSWERS: dict[Kind, type[Answer]] = {
    "chat": ChatCompletion,
    "completion": Completion,
    "embedding": Embeddings,
    "response": Response,
    "tokenize": Tokens,
    "detokenize": Detokenized,
}


def cache_key(call: Call) -> str:
    """Return the key of a call: the SHA-256 of what decides its answer.

    That is its kind, model, messages or prompt or inputs, parameters and `extra_body`. Endpoint, API key,
    headers, timeout and session decide nothing.

    Raises:
        InvalidParameterError: a value that cannot be sent as JSON.
    """
    content = {
        "format": _FORMAT,
        "kind": call.kind,
        "model": call.model,
        "messages": None if call.messages is None else [_sorted(message) for message in call.messages],
        "prompt": call.prompt,
        "inputs": call.inputs,
        "params": _sorted_twice(call.params.set_values()),
        "extra_body": _sorted_twice(call.extra_body),
    }
    try:
        text = json.dumps(content, separators=(",", ":"))
    except (TypeError, ValueError) as exc:
        raise InvalidParameterError(f"The call cannot be sent as JSON: {exc}.") from None
    return hashlib.sha256(text.encode()).hexdigest()


def _sorted(value: Mapping[Any, Any]) -> dict[Any, Any]:
    return {name: value[name] for name in sorted(value, key=str)}


def _sorted_twice(value: Mapping[str, Any]) -> dict[str, Any]:
    """Sort the names, and those one level below, such as the tokens of `logit_bias`.

    The order of names matters deeper inside: a JSON schema's properties are generated in their order.
    """
    return _sorted(
        {name: _sorted(inner) if isinstance(inner, Mapping) else inner for name, inner in value.items()}
    )


def is_cacheable(call: Call, *, sampled: bool) -> bool:
    """Whether the same call deserves the same answer: at temperature 0, with a seed, or if `sampled`.

    Embeddings and token counts always do. A call without a model never does: each server has its own. Nor
    does one of the Responses API, which may go on from what the server has stored.
    """
    if call.model is None or call.kind == "response":
        return False
    if call.kind not in ("chat", "completion"):
        return True
    return sampled or call.params.temperature == 0 or call.params.seed is not None


def is_complete(answer: Answer) -> bool:
    """Whether the model finished: every choice ended by itself, by its length or with a tool call."""
    choices = getattr(answer, "choices", None)
    if choices is None:
        return True  # embeddings and token counts come whole or not at all
    return bool(choices) and all(choice.finish_reason in _FINISHED for choice in choices)


def dump(answer: Answer) -> bytes:
    """Return an answer as bytes for `Cache.put`: JSON, compressed; `load` gives it back."""
    content = {
        "answer": answer.model_dump(),
        "raw": answer.raw,
        "request_id": answer.request_id,
        "endpoint": answer.endpoint,
    }
    # Compressed, `raw` costs next to nothing beside the answer that was read out of it.
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 1)


def load(kind: Kind, stored: bytes) -> Any:
    """Return the answer that `dump` made into bytes; its `.cached` is True.

    Raises:
        ValueError: the bytes are damaged.
    """
    try:
        content = json.loads(zlib.decompress(stored))
        answer = _ANSWERS[kind].model_validate(content["answer"])
        answer._raw = content["raw"]
        answer._request_id, answer._endpoint = content["request_id"], content["endpoint"]
    except (zlib.error, KeyError, TypeError) as exc:
        raise ValueError(f"A cached answer is damaged ({exc!r}).") from exc
    answer._cached = True
    return answer
