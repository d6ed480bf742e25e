"""Define what a reasoning parser is: where a family of models thinks before it answers."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Literal

# Where an answer begins: inside of thoughts, behind them, or where thoughts may begin.
Opening = Literal["open", "closed", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThoughtLimit:
    """Limit thoughts.

    Attributes:
        max_tokens: that they may take, without what begins and ends them.
        end_token_ids: the tokens that end them.
    """

    max_tokens: int
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningParser:
    """Know the texts around a model's thoughts.

    Attributes:
        starts: what begins the thoughts, in each spelling; the first is the usual one.
        ends: what ends them.
        implicit: an answer begins with thoughts even where neither the prompt nor the answer says so.
    """

    starts: tuple[str, ...]
    ends: tuple[str, ...]
    implicit: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Return all texts of the format."""
        return self.starts + self.ends

    def opening(self, prompt_end: str) -> Opening:
        """Tell where an answer begins, from the end of the prompt: many templates write a start or an end."""
        end = prompt_end.rstrip()
        if end.endswith(self.starts):
            return "open"
        return "closed" if end.endswith(self.ends) else "unknown"

    def reserved(self, opening: Opening, special_tokens: Container[str]) -> str:
        """Return the characters that thoughts may begin with where text may begin, too.

        Args:
            opening: where an answer begins.
            special_tokens: texts of the tokenizer's special tokens.
        """
        if opening != "unknown" or self.implicit:
            return ""
        return "".join(dict.fromkeys(start[0] for start in self.starts if start not in special_tokens))

    def before(
        self,
        answer: dict[str, Any],
        opening: Opening,
        *,
        special_tokens: Container[str],
        is_free: bool,
        limit: ThoughtLimit | None = None,
        instead: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return the format, as of structural tags, of thoughts and the constrained answer behind them.

        Args:
            answer: format of the answer.
            opening: where it begins.
            special_tokens: texts of the tokenizer's special tokens.
            is_free: the answer may be any text, but for parts of it, and may begin as thoughts do.
            limit: of the thoughts.
            instead: format of an answer without thoughts; None: as of one behind them.
        """
        if opening == "closed":
            return answer
        thoughts = self._thoughts([""], limit)
        if opening == "open":
            return _sequence(thoughts, answer)
        is_special = any(start in special_tokens for start in self.starts)
        begun = self._thoughts(self.starts, limit)
        if self.implicit:
            return _sequence(_either([begun, thoughts]) if is_special else thoughts, answer)
        if is_free and not is_special:
            # Free text may hold thoughts as it is, and nobody could tell the two apart.
            return answer
        return _either([_sequence(begun, answer), instead or answer])

    def _thoughts(self, starts: Sequence[str], limit: ThoughtLimit | None) -> dict[str, Any]:
        if limit is None:
            return _either([_tag(start, end) for start in starts for end in self.ends])
        # Ends stand as text: llguidance cannot take back a plain token, as of a draft, asked for by its id.
        excluded = list(limit.end_token_ids)
        return _sequence(
            _either([_const(start) for start in starts]),
            {"type": "any_tokens", "exclude_tokens": excluded, "max_tokens": limit.max_tokens},
            _either([_const(end) for end in self.ends]),
        )


def _tag(begin: str, end: str) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": end}


def _const(text: str) -> dict[str, Any]:
    return {"type": "const_string", "value": text}


def _sequence(*elements: dict[str, Any]) -> dict[str, Any]:
    return {"type": "sequence", "elements": list(elements)}


def _either(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return elements[0] if len(elements) == 1 else {"type": "or", "elements": elements}
