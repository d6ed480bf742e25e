"""Decide what the next step computes: one token budget over decodes, prefills and waiting sequences."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .kv_cache import PagePool
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """Let one sequence compute its next `num_tokens` tokens."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        """Tell whether the step reaches the sequence's last token, so that a new one can be drawn."""
        return self.num_tokens == self.sequence.num_uncomputed


class Scheduler:
    """Keep the waiting and the running sequences and their pages.

    Running sequences come first: decodes (one token each), then prompts that are partly read; what is left of
    the budget admits waiting sequences in order. When a running sequence finds no free page, the newest
    running one gives up its pages and waits again; it recomputes its tokens later. The oldest is never
    preempted while others run, and each sequence fits the pool alone (the engine checks that), so every one
    of them ends.

    Args:
        pool: where pages come from.
        max_num_seqs: sequences that may run at once.
        max_num_batched_tokens: tokens of one step.
    """

    def __init__(self, pool: PagePool, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or not, and free its pages."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def has_unfinished(self) -> bool:
        """Tell whether anything runs or waits."""
        return bool(self.running or self.waiting)

    def schedule(self) -> list[Scheduled]:
        """Choose the work of one step and allocate its pages; empty only when nothing runs or waits."""
        budget = self.max_num_batched_tokens
        step: list[Scheduled] = []
        preempted = self.num_preemptions
        # sorted() is stable: by age among the decodes, then by age among the prefills.
        for sequence in sorted(self.running, key=lambda sequence: sequence.num_uncomputed > 1):
            num_tokens = min(sequence.num_uncomputed, budget)
            if num_tokens == 0 or sequence not in self.running:
                continue
            victims = self._make_room(sequence, num_tokens)
            if victims:
                budget += sum(item.num_tokens for item in step if item.sequence in victims)
                step = [item for item in step if item.sequence not in victims]
            if sequence in victims:
                continue
            step.append(Scheduled(sequence, num_tokens))
            budget -= num_tokens
        # After a preemption pages are short: whoever was preempted would only be the next to be preempted.
        while (
            self.waiting
            and budget > 0
            and len(self.running) < self.max_num_seqs
            and (preempted == self.num_preemptions)
        ):
            sequence = self.waiting[0]
            # Pages for the whole of it must be free, or long prompts would keep preempting each other.
            if self.pool.pages_for(len(sequence.token_ids)) > self.pool.num_free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            num_tokens = min(sequence.num_uncomputed, budget)
            self._extend(sequence, num_tokens)
            step.append(Scheduled(sequence, num_tokens))
            budget -= num_tokens
        return step

    def _make_room(self, sequence: Sequence, num_tokens: int) -> list[Sequence]:
        """Give `sequence` pages for `num_tokens` more tokens; return who lost theirs for it, maybe itself."""
        victims: list[Sequence] = []
        while not self._extend(sequence, num_tokens):
            victim = self.running.pop()
            self._release(victim)
            victim.num_computed = 0
            self.waiting.appendleft(victim)
            self.num_preemptions += 1
            victims.append(victim)
            if victim is sequence:
                break
        return victims

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
