"""Constrain what is generated: JSON Schema, regular expressions, choices and grammars.

llguidance compiles a constraint to a parser over the tokenizer's vocabulary (about 1 ms) and says before each
token which ones keep the text valid (about 50 µs). It refuses a schema that it cannot enforce exactly
instead of enforcing half of it. It is imported on first use: the engine runs without it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from .errors import ConstraintError, InvalidRequestError
from .request import Structured

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from .sequence import Row
    from .tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_CACHED_GRAMMARS = 256
_COMPILE_STACK = 512 * 2**20  # bytes of address space; only what is used takes memory


class GrammarCompiler:
    """Make matchers for one tokenizer. Safe to use from several threads.

    Args:
        tokenizer: of the model.
        vocab_size: width of the logits, which may be more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._compile = functools.lru_cache(maxsize=_CACHED_GRAMMARS)(self._compile_deep)

    def matcher(self, constraint: Structured) -> Matcher:
        """Compile a constraint, unless it is cached, and return a matcher at the beginning of the text.

        Raises:
            InvalidRequestError: it is malformed, too large, or asks for what cannot be enforced; llguidance
                is not installed.
        """
        return Matcher(self._compile(constraint).deep_copy(), constraint, self._vocab_size)

    def _compile_deep(self, constraint: Structured) -> LLMatcher:
        """Compile in a thread with a deep stack: llguidance recurses, and overflowing kills the process."""
        result: Future[LLMatcher] = Future()

        def run() -> None:
            try:
                result.set_result(self._compile_now(constraint))
            except BaseException as error:  # noqa: BLE001 - handed to who waits
                result.set_exception(error)

        with self._lock:
            # For the next thread that starts in this process, which is this one, or one that does not mind.
            previous = threading.stack_size(_COMPILE_STACK)
            try:
                threading.Thread(target=run, name="compile-grammar", daemon=True).start()
            finally:
                threading.stack_size(previous)
        return result.result()

    def _compile_now(self, constraint: Structured) -> LLMatcher:
        tokenizer = self._ll_tokenizer()
        from llguidance import LLMatcher, grammar_from

        try:
            if constraint.kind == "json_schema":
                # Without free whitespace a small model cannot write blanks for ever.
                grammar = LLMatcher.grammar_from_json_schema(
                    constraint.value, overrides={"whitespace_flexible": False}
                )
            else:
                grammar = grammar_from(constraint.kind, constraint.value)
        except ValueError as error:
            raise _refused(constraint, str(error)) from None
        matcher = LLMatcher(tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refused(constraint, matcher.get_error())
        return matcher

    def _ll_tokenizer(self) -> LLTokenizer:
        with self._lock:
            return self._made_tokenizer

    @functools.cached_property
    def _made_tokenizer(self) -> LLTokenizer:
        try:
            from llguidance import LLTokenizer
        except ImportError as error:
            raise InvalidRequestError(
                f"Structured output needs llguidance, which is not installed ({error}): "
                "pip install 'myllm-suite[engine]'",
                param="structured",
            ) from error
        return LLTokenizer(
            self._tokenizer.backend.to_str(),
            n_vocab=self._vocab_size,
            eos_token=sorted(self._tokenizer.eos_token_ids),
        )


class Matcher:
    """Follow one sequence's text through its grammar.

    Args:
        matcher: llguidance's, at the beginning of the text.
        constraint: what it was compiled from, for messages.
        vocab_size: width of the logits.
    """

    def __init__(self, matcher: LLMatcher, constraint: Structured, vocab_size: int) -> None:
        self._matcher = matcher
        self._constraint = constraint
        self._vocab_size = vocab_size
        self._bits = np.zeros((1, (vocab_size + 31) // 32), dtype=np.int32)

    def copy(self) -> Matcher:
        """Return a matcher at the same place, which goes on by itself."""
        return Matcher(self._matcher.deep_copy(), self._constraint, self._vocab_size)

    def allowed(self) -> np.ndarray:
        """Return which tokens keep the text valid, `[vocab_size]` bool.

        Raises:
            ConstraintError: the grammar ran into one of llguidance's limits (its size, its work for one
                token).
        """
        from llguidance.numpy import fill_next_token_bitmask

        fill_next_token_bitmask(self._matcher, self._bits)
        if self._matcher.is_error():
            raise self._failed()
        # llguidance's own torch kernel is compiled at its first call, which takes many seconds on a CPU.
        bits = np.unpackbits(self._bits.view(np.uint8)[0], count=self._vocab_size, bitorder="little")
        return bits.view(bool)

    def append(self, token_id: int) -> bool:
        """Follow a token that `allowed` allows; return whether the text is now complete and can't go on.

        Raises:
            ConstraintError: the grammar cannot follow it.
        """
        if not self._matcher.consume_token(token_id):
            raise self._failed()
        return self._matcher.is_stopped()

    def _failed(self) -> ConstraintError:
        # Not `get_error()`: it quotes the prompt's and the answer's text, which belongs in no log.
        reason = self._matcher.stop_reason()
        logger.warning("A request's constraint could not be followed any further: %s", reason)
        return ConstraintError(
            f"The {_name(self._constraint)} is too complex to be followed to its end ({reason}): simplify it",
            param=self._constraint.param,
        )


def _name(constraint: Structured) -> str:
    return constraint.kind.replace("_", " ")


def _refused(constraint: Structured, words: str) -> InvalidRequestError:
    lines = [line for line in words.strip().splitlines() if line.strip()]
    return InvalidRequestError(
        f"The {_name(constraint)} cannot be enforced: {lines[0] if lines else words}",
        param=constraint.param,
    )


def allowed_tokens(rows: Sequence[Row]) -> list[np.ndarray | ConstraintError | None]:
    """Return for each row which tokens its constraint allows, `[vocab_size]` bool, or None without one.

    A constraint that cannot be followed any further gives its error.
    """
    return [_allowed(row) for row in rows]


def _allowed(row: Row) -> np.ndarray | ConstraintError | None:
    matcher = row.sequence.matcher
    if matcher is None:
        return None
    try:
        return matcher.allowed()
    except ConstraintError as error:
        return error
