"""Embeddings: OpenAI's endpoint, which most servers have, and Ollama's own.

Wire formats: https://platform.openai.com/docs/api-reference/embeddings and
https://github.com/ollama/ollama/blob/main/docs/api.md#generate-embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidResponseError, UnsupportedFeatureError
from ..types import Embedding, Embeddings, Usage
from ..wire import Call, WireRequest


def openai_request(call: Call) -> WireRequest:
    """Return the request for OpenAI's endpoint.

    Nothing is sampled, so of the parameters only those that mean something here are sent: `user` and
    `truncate_prompt_tokens`. `dimensions`, `encoding_format` and the like go through `extra_body`.
    """
    return _request(call, "/v1/embeddings", ("user", "truncate_prompt_tokens"))


def ollama_request(call: Call) -> WireRequest:
    """Return the request for Ollama's endpoint."""
    return _request(call, "/api/embed", ())


def openai_answer(call: Call, raw: Any) -> Embeddings:
    """Read OpenAI's answer.

    Raises:
        InvalidResponseError: it does not hold one vector for each text.
    """
    first = raw["data"][0]["embedding"] if raw["data"] else None
    if isinstance(first, list) and first and isinstance(first[0], list):
        raise InvalidResponseError(
            "The server gave a vector for each token instead of one for each text.",
            hint="Its model does no pooling: serve one made for embeddings.",
        )
    return _checked(call, Embeddings.model_validate(raw), raw)


def ollama_answer(call: Call, raw: Mapping[str, Any]) -> Embeddings:
    """Read Ollama's answer.

    Raises:
        InvalidResponseError: it does not hold one vector for each text.
    """
    data = [Embedding(index=i, embedding=vector) for i, vector in enumerate(raw["embeddings"])]
    count = raw.get("prompt_eval_count")
    usage = None if count is None else Usage(prompt_tokens=count, total_tokens=count)
    return _checked(call, Embeddings(model=raw.get("model"), data=data, usage=usage), raw)


def no_embeddings(dialect: str, hint: str) -> UnsupportedFeatureError:
    """Return the error for a server that has no embeddings."""
    return UnsupportedFeatureError(
        f"{dialect!r} servers have no endpoint for embeddings, so nothing was sent.", hint=hint
    )


def _request(call: Call, path: str, known: tuple[str, ...]) -> WireRequest:
    body: dict[str, Any] = {} if call.model is None else {"model": call.model}
    body["input"] = call.inputs
    values = call.params.set_values()
    body.update({name: values[name] for name in known if name in values})
    return WireRequest(method="POST", path=path, json={**body, **call.extra_body})


def _checked(call: Call, answer: Embeddings, raw: Any) -> Embeddings:
    wanted, got = len(call.inputs or ()), len(answer.data)
    if got != wanted or {entry.index for entry in answer.data} != set(range(got)):
        raise InvalidResponseError(f"The answer has {got} vectors for {wanted} texts.")
    answer._raw = raw
    return answer
