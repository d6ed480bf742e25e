"""The SDK's answers as LiteLLM's responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import litellm
from litellm.types.utils import EmbeddingResponse, ModelResponse, ModelResponseStream, TextCompletionResponse

from myllm import ChatCompletion, Completion, Embeddings
from myllm.types import Logprobs

ResponseT = TypeVar(
    "ResponseT", ModelResponse, ModelResponseStream, TextCompletionResponse, EmbeddingResponse
)


def of_provider(response: ResponseT, provider: str) -> ResponseT:
    """Mark a response as a provider's: `litellm.completion_cost` looks here."""
    response._hidden_params["custom_llm_provider"] = provider
    return response


def chat_response(answer: ChatCompletion, provider: str, model: str) -> ModelResponse:
    """Return a chat's answer."""
    body = answer.model_dump(exclude_none=True)
    for choice in body["choices"]:
        message = choice["message"]
        message.setdefault("content", None)
        if "reasoning" in message:
            message["reasoning_content"] = message.pop("reasoning")
    return of_provider(ModelResponse(**{**body, "model": answer.model or model}), provider)


def templated_response(answer: Completion, provider: str, model: str) -> ModelResponse:
    """Return a prompt's continuation as the answer of the chat that the prompt was made of."""
    choices = []
    for choice in answer.choices:
        body = choice.model_dump(exclude_none=True)
        body["message"] = {"role": "assistant", "content": body.pop("text")}
        choices.append(body)
    usage = {} if answer.usage is None else {"usage": answer.usage.model_dump(exclude_none=True)}
    return of_provider(
        ModelResponse(
            id=answer.id or None,
            created=answer.created or None,
            model=answer.model or model,
            choices=choices,
            **usage,
        ),
        provider,
    )


def text_response(answers: Sequence[Completion], provider: str, model: str) -> TextCompletionResponse:
    """Return one answer to all prompts, their choices numbered through as OpenAI does."""
    choices: list[dict[str, Any]] = []
    for answer in answers:
        for choice in answer.choices:
            body = choice.model_dump(exclude_none=True)
            body.update(index=len(choices), logprobs=_legacy_logprobs(answer, choice.index, choice.logprobs))
            choices.append(body)
    first = answers[0]
    return of_provider(
        TextCompletionResponse(
            id=first.id or None,
            created=first.created or None,
            model=first.model or model,
            choices=choices,
            usage=_total_usage(answers),
        ),
        provider,
    )


def embedding_response(answer: Embeddings, provider: str, model: str) -> EmbeddingResponse:
    """Return the vectors of texts."""
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(answer.vectors)
    ]
    usage = answer.usage
    return of_provider(
        EmbeddingResponse(
            model=answer.model or model,
            data=data,
            usage=litellm.Usage(
                prompt_tokens=usage.prompt_tokens if usage else 0,
                completion_tokens=0,
                total_tokens=usage.total_tokens if usage else 0,
            ),
        ),
        provider,
    )


def _legacy_logprobs(answer: Completion, index: int, logprobs: Logprobs | None) -> dict[str, Any] | None:
    """Return a choice's log-probabilities as the completion endpoint has them: parallel lists."""
    raw = answer.raw.get("choices") if isinstance(answer.raw, Mapping) else None
    if raw:
        found: dict[str, Any] | None = next(
            (choice.get("logprobs") for choice in raw if choice.get("index", 0) == index), None
        )
        return found
    if logprobs is None:
        return None
    tokens = logprobs.content or []
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token.token))
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [{top.token: top.logprob for top in token.top_logprobs} for token in tokens],
        "text_offset": starts[:-1],
    }


def _total_usage(answers: Sequence[Completion]) -> litellm.Usage:
    known = [answer.usage for answer in answers if answer.usage is not None]
    return litellm.Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in known),
        completion_tokens=sum(usage.completion_tokens for usage in known),
        total_tokens=sum(usage.total_tokens for usage in known),
    )
