"""What the dialects of servers with words of their own share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..types import ChatCompletion, Completion, Usage
from ..wire import Call
from ._base import refuse

AnswerT = TypeVar("AnswerT", ChatCompletion, Completion)


def seeds(call: Call, dialect: str) -> list[dict[str, int]]:
    """Return what sets the `n` requests of a call apart: seed, seed + 1, … if a seed was given.

    Raises:
        UnsupportedFeatureError: more than one answer is wanted of one stream.
    """
    n, seed = call.params.n or 1, call.params.seed
    if call.stream and n > 1:
        raise refuse("n", n, dialect, "the stream", "Open one stream for each answer.")
    return [{} if seed is None else {"seed": seed + i} for i in range(n)]


def joined(answers: Sequence[AnswerT]) -> AnswerT:
    """Join the answers to `n` requests into one with `n` choices."""
    first = answers[0]
    if len(answers) == 1:
        return first
    choices = [choice for answer in answers for choice in answer.choices]
    joined = first.model_copy(
        update={
            "choices": [choice.model_copy(update={"index": i}) for i, choice in enumerate(choices)],
            "usage": _total([answer.usage for answer in answers]),
        }
    )
    joined._raw = [answer.raw for answer in answers]
    return joined


def choice_grammar(choices: Sequence[str]) -> str:
    """Return the GBNF (and xgrammar EBNF) of "one of these texts".

    Format: https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md.
    """
    return "root ::= " + " | ".join(_literal(choice) for choice in choices)


def _literal(text: str) -> str:
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c) for c in text) + '"'


def _total(usages: Sequence[Usage | None]) -> Usage | None:
    """Count the prompt once: it is one call."""
    known = [usage for usage in usages if usage is not None]
    if len(known) < len(usages):
        return None
    prompt, completion = known[0].prompt_tokens, sum(usage.completion_tokens for usage in known)
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
