"""Follow texts through their grammars."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..constraint import Structured
from ..errors import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLMatcher

logger = logging.getLogger(__name__)


class Grammar:
    """Hold a compiled grammar, from which matchers are made.

    Matchers of one grammar share llguidance's lexer, which learns as it goes: the second text is faster.

    Args:
        root: llguidance's matcher, at the beginning of the text.
        vocab_size: width of the logits.

    Attributes:
        root: as given; never advanced.
        vocab_size: as given.
        spent: a matcher ran into a limit, perhaps of what all share: compile it anew for the next request.
    """

    def __init__(self, root: LLMatcher, vocab_size: int) -> None:
        self.root = root
        self.vocab_size = vocab_size
        self.spent = False


class Matcher:
    """Follow one sequence's text through its grammar. Not safe to use from several threads at once.

    Args:
        grammar: to follow.
        constraint: what it was compiled from, for messages.
        token_ids: the text so far.
    """

    def __init__(self, grammar: Grammar, constraint: Structured, token_ids: Sequence[int] = ()) -> None:
        self._grammar = grammar
        self._constraint = constraint
        self._token_ids = list(token_ids)
        self.raw = grammar.root.deep_copy()
        if token_ids:
            self.raw.consume_tokens(self._token_ids)

    @property
    def vocab_size(self) -> int:
        """Return the width of the logits."""
        return self._grammar.vocab_size

    def copy(self) -> Matcher:
        """Return a matcher at the same place, which goes on by itself."""
        copy = Matcher(self._grammar, self._constraint)
        copy._token_ids = list(self._token_ids)
        copy.raw = self.raw.deep_copy()
        return copy

    def allowed(self) -> np.ndarray:
        """Return which tokens keep the text valid, `[vocab_size]` bool.

        Raises:
            ConstraintError: the grammar ran into one of llguidance's limits (its size, its work for one
                token).
        """
        return unpack(self.bits(), self.vocab_size)

    def bits(self) -> np.ndarray:
        """Return `allowed` as `[ceil(vocab_size / 32)]` int32, the lowest bit first.

        Raises:
            ConstraintError: see `allowed`.
        """
        bits = np.empty(words(self.vocab_size), dtype=np.int32)
        self.raw.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        self.check()
        return bits

    def append(self, token_id: int) -> bool:
        """Follow a token that `allowed` allows; return whether the text is now complete and can't go on.

        Raises:
            ConstraintError: the grammar cannot follow it.
        """
        if not self.raw.consume_token(token_id):
            raise self._failed()
        self._token_ids.append(token_id)
        return self.raw.is_stopped()

    def check(self) -> None:
        """Raise ConstraintError when a limit was hit; llguidance's matchers fail in silence, and for good."""
        if self.raw.is_error():
            raise self._failed()

    def restore(self) -> None:
        """Come back to the text so far after a failure beyond it."""
        self.raw = self._grammar.root.deep_copy()
        self.raw.consume_tokens(self._token_ids)

    def _failed(self) -> ConstraintError:
        # Not `get_error()`: it can quote the prompt's and the answer's text, which belongs in no log.
        reason = self.raw.stop_reason()
        if not self._grammar.spent:  # others that follow it may fail of the same
            logger.warning("A request's constraint could not be followed any further: %s", reason)
        self._grammar.spent = True
        name = self._constraint.kind.replace("_", " ")
        return ConstraintError(
            f"The {name} is too complex to be followed to its end ({reason}): simplify it",
            param=self._constraint.param,
        )


def valid_drafts(matcher: Matcher, drafts: Sequence[int]) -> int:
    """Return how many of the proposed tokens, from the first on, the grammar accepts one after the other."""
    count = matcher.raw.validate_tokens(list(drafts))
    return count if _intact(matcher) else 0


def forced_tokens(matcher: Matcher) -> list[int]:
    """Return the tokens that must come next, for as far as there is only one choice; often none.

    As drafts for speculation they are always kept. Costs 10 to 20 µs.
    """
    tokens = matcher.raw.compute_ff_tokens()
    return tokens if _intact(matcher) else []


def _intact(matcher: Matcher) -> bool:
    """Undo what looking ahead may have broken: the text itself may not fail of it."""
    if not matcher.raw.is_error():
        return True
    matcher.restore()
    return False


def words(vocab_size: int) -> int:
    """Return how many int32 hold a bit a token."""
    return (vocab_size + 31) // 32


def unpack(bits: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return `[..., vocab_size]` bool of `[..., words]` int32."""
    # llguidance's own torch kernel is compiled at its first call, which takes many seconds on a CPU.
    return np.unpackbits(bits.view(np.uint8), axis=-1, count=vocab_size, bitorder="little").view(bool)
