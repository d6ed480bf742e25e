"""Decide how much to propose: as long as it pays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol
from weakref import WeakKeyDictionary

from ..batch import Batch
from ..sequence import Sequence
from ..structured import valid_drafts

# Weight of the newest observation in running means: about the last ten steps count.
_WEIGHT = 0.1
# A sequence whose proposals did not pay is tried again after so many tokens, twice as many each time.
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 256
# Share of a step's time that grows with its tokens, until it was measured.
_ASSUMED_SHARE = 0.2


class Proposer(Protocol):
    """What can propose tokens."""

    def propose(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Return proposals, at most as many tokens as wanted for each sequence; fewer or none are fine."""


class StepCost:
    """Learn how a decoding step's time grows with its tokens: `time = fixed + each * tokens`.

    Running means give the least-squares line through recent steps.
    """

    def __init__(self) -> None:
        self._count = 0
        self._tokens = self._seconds = self._squares = self._products = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Take a step into account."""
        weight = max(_WEIGHT, 1.0 / (self._count + 1))
        self._count += 1
        self._tokens += weight * (tokens - self._tokens)
        self._seconds += weight * (seconds - self._seconds)
        self._squares += weight * (tokens * tokens - self._squares)
        self._products += weight * (tokens * seconds - self._products)

    def share(self, sequences: int) -> float:
        """Return what one more token costs in a step that decodes `sequences` sequences.

        In units of what a token costs there without speculation: an additional token pays if the probability
        that it is right is above this.
        """
        variance = self._squares - self._tokens**2
        if self._count < 3 or variance < 0.01 * self._tokens**2:
            return _ASSUMED_SHARE
        each = (self._products - self._tokens * self._seconds) / variance
        fixed = self._seconds - each * self._tokens
        whole = fixed + each * sequences
        if each <= 0.0 or whole <= 0.0:
            return 0.0 if each <= 0.0 else 1.0
        return min(1.0, each * sequences / whole)


@dataclass(slots=True)
class _Record:
    """How a sequence's proposals did.

    Attributes:
        rate: share of proposed tokens that were right, lately.
        pause: tokens that it was last left alone for.
        resume: no proposals before the sequence has so many tokens.
    """

    rate: float = 0.7
    pause: int = 0
    resume: int = 0


class Speculator:
    """Give decoding sequences drafts, as many as pay.

    Args:
        proposer: makes the proposals.
        num_tokens: most tokens proposed to a sequence a step.

    Attributes:
        num_drafted: tokens proposed in all.
        num_accepted: those that were right.
    """

    def __init__(self, proposer: Proposer, num_tokens: int) -> None:
        self._proposer = proposer
        self._num_tokens = num_tokens
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()
        # Those that were given drafts for this step: how many tokens they had, and the drafts.
        self._drafted: dict[Sequence, tuple[int, list[int]]] = {}
        self._cost = StepCost()
        self.num_drafted = 0
        self.num_accepted = 0

    def propose(self, running: list[Sequence]) -> None:
        """Set the drafts of those sequences that have none and for which it pays."""
        decoding = [sequence for sequence in running if sequence.num_uncomputed == 1]
        share = self._cost.share(len(decoding))
        self._drafted = {}
        wanted = {}
        for sequence in decoding:
            if sequence.drafts:
                continue
            record = self._records.setdefault(sequence, _Record())
            # The last token of a completion is drawn, not proposed.
            room = sequence.max_total_tokens - len(sequence.token_ids) - 1
            if room > 0 and len(sequence.token_ids) >= record.resume:
                wanted[sequence] = min(self._length(record.rate, share), room)
        proposals = self._proposer.propose(wanted)
        for sequence, drafts in proposals.items():
            if sequence.matcher is not None:
                drafts = drafts[: valid_drafts(sequence.matcher, drafts)]
            if drafts:
                sequence.drafts = drafts
                self._drafted[sequence] = len(sequence.token_ids), drafts

    def observe(self, batch: Batch, seconds: float) -> None:
        """Look at what became of a step's drafts, and at the time it took."""
        if batch.scheduled and len(batch.rows) == batch.input_ids.shape[0]:  # it did nothing but decode
            self._cost.observe(len(batch.rows), seconds)
        num_decoding = len(batch.scheduled)
        for row in batch.rows:
            # The first row of those with drafts stands for the sequence.
            if row.num_drafted and not row.drafts and row.sequence in self._drafted:
                self._settle(row.sequence, self._cost.share(num_decoding))

    def _settle(self, sequence: Sequence, share: float) -> None:
        record = self._records[sequence]
        place, drafts = self._drafted[sequence]
        pairs = zip(sequence.token_ids[place:], drafts, strict=False)
        accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.num_drafted += len(drafts)
        self.num_accepted += accepted
        record.rate += 2 * _WEIGHT * (accepted / len(drafts) - record.rate)
        if record.rate <= share:
            record.pause = min(max(2 * record.pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            record.resume = len(sequence.token_ids) + record.pause
            record.rate = share + 0.1  # so that the next trial is one
        elif accepted:
            record.pause = 0

    def _length(self, rate: float, share: float) -> int:
        """Return how many tokens to propose: the n-th is right with about `rate ** n`."""
        count, chance = 1, rate * rate
        while count < self._num_tokens and chance > share:
            count, chance = count + 1, chance * rate
        return count
