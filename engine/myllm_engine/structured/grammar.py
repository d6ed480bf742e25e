"""Say each kind of constraint in llguidance's own terms."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ..constraint import Structured
from ..errors import InvalidRequestError
from .ebnf import ebnf_to_lark, is_ebnf
from .tags import tags_to_grammar

# More than people write. What is small can take long too: see `compiler`.
MAX_CHARACTERS = 256 * 1024


def check_size(constraint: Structured) -> None:
    """Refuse what is too large to be read.

    Raises:
        InvalidRequestError: it has more than `MAX_CHARACTERS` characters.
    """
    if len(constraint.value) > MAX_CHARACTERS:
        raise InvalidRequestError(
            f"The {name_of(constraint)} is too large: it has {len(constraint.value)} characters, and "
            f"{MAX_CHARACTERS} at most are compiled",
            param=constraint.param,
        )


def to_grammar(constraint: Structured, special_tokens: Mapping[str, int]) -> str:
    """Return llguidance's grammar for a constraint.

    Args:
        constraint: what the text must look like.
        special_tokens: ids of the tokenizer's special tokens by their text.

    Raises:
        InvalidRequestError: it is malformed.
    """
    from llguidance import LLMatcher

    try:
        match constraint.kind:
            case "json_schema":
                # Without free whitespace a small model cannot write blanks for ever.
                options = {"whitespace_flexible": False}
                if constraint.whitespace is not None:
                    options = {"whitespace_flexible": True, "whitespace_pattern": constraint.whitespace}
                return LLMatcher.grammar_from_json_schema(constraint.value, overrides=options)
            case "regex":
                return LLMatcher.grammar_from_regex(constraint.value)
            case "choice":
                # One lexeme: as alternatives of a rule, some thousand are more than the parser takes.
                texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(constraint.value))
                return f"start: TEXT\nTEXT: {' | '.join(texts)}\n"
            case "grammar":
                return ebnf_to_lark(constraint.value) if is_ebnf(constraint.value) else constraint.value
            case "structural_tag":
                return tags_to_grammar(json.loads(constraint.value), special_tokens)
    except (ValueError, RecursionError) as error:
        raise refused(constraint, str(error)) from None


def name_of(constraint: Structured) -> str:
    """Return what a constraint is called in messages."""
    return constraint.kind.replace("_", " ")


def refused(constraint: Structured, words: str) -> InvalidRequestError:
    """Return the error for a constraint that llguidance, which said `words`, does not take."""
    # A stop reason where the grammar's beginning is its end.
    words = words.replace("NoExtensionBias", "").replace("NoExtension", "")
    lines = [line.strip() for line in words.splitlines()]
    lines = [line for line in lines if line not in ("", "<non-verbose/>")] or ["it matches no text"]
    # The reason of a faulty regex comes last, below a drawing of it.
    reason = next((line for line in lines if line.startswith("error: ")), "")
    return InvalidRequestError(
        f"The {name_of(constraint)} cannot be enforced: {lines[0][:200]} {reason[:100]}".rstrip(),
        param=constraint.param,
    )
