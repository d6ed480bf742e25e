"""Decide what the next step computes: one token budget over decodes, prefills and waiting sequences."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass

from .kv_cache import PagePool, page_keys
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Let one sequence compute its next tokens.

    Attributes:
        sequence: the sequence.
        num_tokens: how many, its drafts among them included.
        samples: whether they reach the sequence's last token, so that a new one can be drawn.
    """

    sequence: Sequence
    num_tokens: int
    samples: bool


class Scheduler:
    """Keep the waiting and the running sequences and their pages.

    Running sequences come first: decodes (one token each, and the drafts that are to be verified), then
    prompts that are partly read; what is left of the budget admits waiting sequences by priority, then by
    age. An admitted sequence takes the pages that hold its beginning already, those that this very step fills
    included: a layer stores all of a step's keys and values before it reads any.

    When a running sequence finds no free page, the last by priority and age gives up its pages and waits
    again; it recomputes later what is then no longer cached. The first one is never preempted while others
    run, and each sequence fits the pool alone (the engine checks that), so every one of them ends.

    Args:
        pool: where pages come from.
        max_num_seqs: sequences that may run at once.
        max_num_batched_tokens: tokens of one step.
        max_num_logits: rows of logits of one step; only chunks of prompts that want log-probabilities are cut
            by it.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_logits: int | None = None,
    ) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_logits = max_num_logits or max_num_batched_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_cached_tokens = 0
        self._num_added = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        sequence.arrival = self._num_added
        self._num_added += 1
        insort(self.waiting, sequence, key=_rank)

    def fork(self, parent: Sequence, child: Sequence) -> tuple[int, int] | None:
        """Let `child`, which begins with the computed tokens of `parent`, go on where that one is.

        It shares the parent's whole pages, and its rank. Return the page that must be copied to another
        before the next step, as `(source, target)`. When no page is free or no seat, the child waits and
        finds what is cached.
        """
        child.arrival = parent.arrival
        whole, rest = divmod(parent.num_computed, self.pool.page_size)
        if len(self.running) >= self.max_num_seqs or not parent.pages or (rest and not self.pool.num_free):
            insort(self.waiting, child, key=_rank)
            return None
        self.pool.share(parent.pages[:whole])
        child.pages = parent.pages[:whole]
        child.num_computed, child.num_known_pages = parent.num_computed, whole
        self.running.append(child)
        if not rest:
            return None
        child.pages += self.pool.allocate(1)
        return parent.pages[whole], child.pages[whole]

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def has_unfinished(self) -> bool:
        """Tell whether anything runs or waits."""
        return bool(self.running or self.waiting)

    def schedule(self, *, in_flight: bool = False) -> list[Scheduled]:
        """Choose the work of one step and allocate its pages; empty only when nothing has work to do.

        Args:
            in_flight: what the step before leads to is not known yet: sequences that wait for it stay where
                they are, and the step may be empty.
        """
        budget, logits = self.max_num_batched_tokens, self.max_num_logits
        step: list[Scheduled] = []
        preempted = self.num_preemptions
        self._cut_drafts()
        for sequence in sorted(self.running, key=lambda item: (item.num_uncomputed > 1, _rank(item))):
            if sequence not in self.running:
                continue
            num_tokens = _chunk(sequence, budget, logits)
            if num_tokens == 0:
                continue
            if sequence.drafts and not self._extend(sequence, num_tokens):
                sequence.drafts = []  # nobody loses pages for a guess
                num_tokens = 1
            victims = self._make_room(sequence, num_tokens)
            for item in [item for item in step if item.sequence in victims] if victims else ():
                step.remove(item)
                budget += item.num_tokens
                logits += _num_logits(item)
            if sequence in victims:
                continue
            step.append(_scheduled(sequence, num_tokens))
            budget -= num_tokens
            logits -= _num_logits(step[-1])
        # Only now: what a preempted sequence was to compute in this step is in no page.
        for item in step:
            self._remember(item)
        # After a preemption pages are short: whoever was preempted would only be the next to be preempted.
        if preempted == self.num_preemptions:
            step += self._admit(budget, logits)
        # Sequences that wait for others of their request have nothing to compute, and may hold the pages that
        # those need. Pages go to the first by rank, whose request fits the pool alone.
        while not in_flight and not step and self.waiting and self.running:
            self._preempt()
            step += self._admit(budget, logits)
        return step

    def _cut_drafts(self) -> None:
        """Drop the drafts for which the budget has no room next to a token for each decoding sequence."""
        decoding = [sequence for sequence in self.running if sequence.num_uncomputed == 1]
        spare = self.max_num_batched_tokens - len(decoding)
        for sequence in decoding:
            if len(sequence.drafts) > spare:
                sequence.drafts = []
            spare -= len(sequence.drafts)

    def _admit(self, budget: int, logits: int) -> Iterator[Scheduled]:
        while self.waiting and budget > 0 and logits > 0 and len(self.running) < self.max_num_seqs:
            sequence = self.waiting[0]
            if sequence.num_pending:  # what it is to read is not known yet
                break
            cached = self._cached_pages(sequence)
            # Pages for the whole of it must be free, or long prompts would keep preempting each other.
            missing = self.pool.pages_for(len(sequence.token_ids)) - len(cached)
            if missing > self.pool.num_free - self.pool.count_free(cached):
                break
            del self.waiting[0]
            self.running.append(sequence)
            self.pool.share(cached)
            sequence.pages = cached
            sequence.num_known_pages = len(cached)
            sequence.num_computed = len(cached) * self.pool.page_size
            if sequence.num_cached_tokens is None:
                sequence.num_cached_tokens = sequence.num_computed
                sequence.admitted = time.monotonic()
                self.num_queried_tokens += sequence.num_prompt_tokens
                self.num_cached_tokens += sequence.num_computed
            item = _scheduled(sequence, _chunk(sequence, budget, logits))
            self._extend(sequence, item.num_tokens)
            self._remember(item)
            budget -= item.num_tokens
            logits -= _num_logits(item)
            yield item

    def _cached_pages(self, sequence: Sequence) -> list[int]:
        """Return the pages that hold the beginning of a sequence, without its last token.

        That one must be computed in any case, and into a page of the sequence's own.
        """
        if sequence.needs_every_token:
            return []
        page_size = self.pool.page_size
        page_keys(sequence.token_ids, page_size, salt=sequence.salt, keys=sequence.page_keys)
        return self.pool.find(sequence.page_keys[: (len(sequence.token_ids) - 1) // page_size])

    def _remember(self, item: Scheduled) -> None:
        """Make the pages that a sequence fills in this step known."""
        sequence, page_size = item.sequence, self.pool.page_size
        # Drafts come after the known tokens, and may turn out wrong.
        end = min(sequence.num_computed + item.num_tokens, len(sequence.token_ids))
        if sequence.num_known_pages < end // page_size:
            page_keys(sequence.token_ids, page_size, salt=sequence.salt, keys=sequence.page_keys)
            for index in range(sequence.num_known_pages, end // page_size):
                self.pool.remember(sequence.pages[index], sequence.page_keys[index])
            sequence.num_known_pages = end // page_size

    def _make_room(self, sequence: Sequence, num_tokens: int) -> list[Sequence]:
        """Give `sequence` pages for `num_tokens` more tokens; return who lost theirs for it, maybe itself."""
        victims: list[Sequence] = []
        while not self._extend(sequence, num_tokens):
            victims.append(self._preempt())
            if victims[-1] is sequence:
                break
        return victims

    def _preempt(self) -> Sequence:
        """Let the last running sequence by rank wait without pages, and return it."""
        victim = max(self.running, key=_rank)
        self.running.remove(victim)
        self._release(victim)
        victim.drafts = []
        insort(self.waiting, victim, key=_rank)
        self.num_preemptions += 1
        return victim

    def _extend(self, sequence: Sequence, num_tokens: int) -> bool:
        missing = self.pool.pages_for(sequence.num_computed + num_tokens) - len(sequence.pages)
        if missing > self.pool.num_free:
            return False
        if missing > 0:
            sequence.pages += self.pool.allocate(missing)
        return True

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.pages)
        sequence.pages = []
        sequence.num_computed = sequence.num_known_pages = 0


def _rank(sequence: Sequence) -> tuple[int, int]:
    """Order sequences: the lower, the sooner they run and the later they are preempted."""
    return sequence.request.priority, sequence.arrival


def _chunk(sequence: Sequence, budget: int, logits: int) -> int:
    """Return how many tokens a sequence may compute now; drafts only follow a single token."""
    num_tokens = sequence.num_uncomputed + len(sequence.drafts)
    if sequence.wants_prompt_logprobs:
        num_tokens = min(num_tokens, logits)
    return min(num_tokens, budget)


def _scheduled(sequence: Sequence, num_tokens: int) -> Scheduled:
    return Scheduled(sequence, num_tokens, samples=num_tokens >= sequence.num_uncomputed)


def _num_logits(item: Scheduled) -> int:
    if item.sequence.wants_prompt_logprobs:
        return item.num_tokens
    return int(item.samples and item.sequence.draws)
