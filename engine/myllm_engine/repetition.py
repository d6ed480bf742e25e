"""Find out that a completion repeats itself. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import checks
from .errors import InvalidRequestError

# Looked for after each token, and all running requests wait meanwhile.
_MAX_PATTERN = 256
_MAX_REPEATED = 2048


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Say when a completion repeats itself: its end is the same few tokens, again and again.

    Attributes:
        max_pattern_size: tokens that the longest pattern may have, at most 256.
        min_pattern_size: tokens of the shortest one.
        min_count: how often a pattern must stand there, one after the other; at least 2, and with the longest
            pattern no more than 2048 tokens.

    Raises:
        InvalidRequestError: from the constructor.
    """

    max_pattern_size: int
    min_pattern_size: int = 1
    min_count: int

    def __post_init__(self) -> None:
        try:
            checks.check_int("max_pattern_size", self.max_pattern_size, low=1, high=_MAX_PATTERN)
            checks.check_int("min_pattern_size", self.min_pattern_size, low=1, high=self.max_pattern_size)
            checks.check_int("min_count", self.min_count, low=2, high=_MAX_REPEATED // self.max_pattern_size)
        except InvalidRequestError as error:
            raise InvalidRequestError(
                f"`repetition_detection`: {error}", param="repetition_detection"
            ) from None

    def found(self, token_ids: Sequence[int]) -> bool:
        """Tell whether the end of a completion is a repetition."""
        for size in range(self.min_pattern_size, self.max_pattern_size + 1):
            if size * self.min_count > len(token_ids):
                return False
            if token_ids[-1] != token_ids[-1 - size]:  # copies nothing, and is nearly always enough
                continue
            # The same tokens, one pattern later.
            if token_ids[-size * self.min_count : -size] == token_ids[-size * (self.min_count - 1) :]:
                return True
        return False
