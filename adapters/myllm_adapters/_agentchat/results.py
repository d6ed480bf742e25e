"""What the SDK answers as AutoGen's `CreateResult`, and what a server tells of itself as its `ModelInfo`."""

from __future__ import annotations

from collections.abc import Sequence

from autogen_core import FunctionCall
from autogen_core.models import (
    ChatCompletionTokenLogprob,
    CreateResult,
    FinishReasons,
    ModelFamily,
    ModelInfo,
    RequestUsage,
    TopLogprob,
)

import myllm
from myllm.types import TokenLogprob
from myllm.wire import ServerInfo, new_request_id

_FINISH: dict[str, FinishReasons] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "function_calls",
    "function_call": "function_calls",
    "content_filter": "content_filter",
}


def create_result(answer: myllm.ChatCompletion) -> CreateResult:
    """Return an answer.

    `thought` is the model's reasoning; beside calls also its text, for which `CreateResult` has no other
    place.
    """
    choice = answer.choices[0]
    message = choice.message
    finish = _FINISH.get(choice.finish_reason or "", "unknown")
    text = message.content or message.refusal or ""
    content: str | list[FunctionCall] = text
    thought = message.reasoning or None
    if message.tool_calls:
        content = [
            # AutoGen finds a call's result by its id; not every server gives one.
            FunctionCall(
                id=call.id or new_request_id(),
                name=call.function.name or "",
                arguments=call.function.arguments,
            )
            for call in message.tool_calls
        ]
        thought = "\n\n".join(filter(None, (message.reasoning, text))) or None
        if finish == "stop":
            finish = "function_calls"  # a function that was named ends with "stop"
    scores = choice.logprobs.content if choice.logprobs is not None else None
    return CreateResult(
        finish_reason=finish,
        content=content,
        usage=request_usage(answer.usage),
        cached=answer.cached,
        logprobs=_logprobs(scores) if scores else None,
        thought=thought,
    )


def request_usage(usage: myllm.Usage | None) -> RequestUsage:
    """Return token counts; zeros where the server told none."""
    if usage is None:
        return RequestUsage(prompt_tokens=0, completion_tokens=0)
    return RequestUsage(prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens)


def added(first: RequestUsage, second: RequestUsage) -> RequestUsage:
    """Return the sum of two counts."""
    return RequestUsage(
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
    )


def _logprobs(scores: Sequence[TokenLogprob]) -> list[ChatCompletionTokenLogprob]:
    return [
        ChatCompletionTokenLogprob(
            token=score.token,
            logprob=score.logprob,
            top_logprobs=[TopLogprob(logprob=top.logprob, bytes=top.bytes) for top in score.top_logprobs],
            bytes=score.bytes,
        )
        for score in scores
    ]


def abilities(server: ServerInfo, *, any_roles: bool) -> ModelInfo:
    """Return what the model behind a server can do.

    Few servers tell. What one does not tell is taken to be there: AutoGen refuses tools for a model without
    them, and leaves images out for one that sees none, where the server, asked, refuses with its reason.

    Args:
        server: what the server told.
        any_roles: whether conversations are made to fit the chat template.
    """
    asked = server.facts.keys()
    return ModelInfo(
        vision="vision" in server.features if "/props" in asked else True,
        function_calling="tools" in server.features if asked & {"/server_info", "/get_server_info"} else True,
        json_output=server.dialect != "tgi",  # it wants a schema
        structured_output=True,
        family=ModelFamily.UNKNOWN,
        multiple_system_messages=any_roles,
    )
