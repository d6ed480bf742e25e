"""Let a small model propose: it continues the text as the large one's sampling would have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceOf
from typing import Protocol

import torch

from ..batch import Batch, build_batch
from ..errors import EngineError
from ..kv_cache import PagePool
from ..request import Request
from ..sampler import sample
from ..scheduler import Scheduled
from ..sequence import Sequence


class Runner(Protocol):
    """What it takes to run the small model; see `runner.ModelRunner`."""

    pool: PagePool
    torch_device: torch.device
    max_model_len: int

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits that the batch asks for."""


class DraftProposer:
    """Propose what a small model with the same vocabulary draws.

    Its draws take the very random numbers that the large model's will take (see `sampler`): where the two
    agree on the distribution they draw the same token, at any temperature. Each followed sequence has a
    shadow, with keys and values in the small model's own pages; without free pages it gets no proposals.

    Args:
        runner: of the small model.
        max_num_batched_tokens: tokens of one forward pass of the small model.
        eos_token_ids: tokens that end a completion.
    """

    def __init__(self, runner: Runner, *, max_num_batched_tokens: int, eos_token_ids: frozenset[int]) -> None:
        self._runner = runner
        self._budget = max_num_batched_tokens
        self._eos_token_ids = eos_token_ids
        self._shadows: dict[Sequence, Sequence] = {}

    def propose(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Return proposals, at most as many tokens as wanted for each sequence, for those that have some."""
        self._drop_stopped()
        shadows = {sequence: self._follow(sequence) for sequence in wanted}
        lengths = {sequence: len(sequence.token_ids) for sequence in wanted}
        for _ in range(max(wanted.values(), default=0)):
            behind = [
                shadow
                for sequence, shadow in shadows.items()
                if len(shadow.token_ids) - lengths[sequence] < wanted[sequence]
            ]
            self._step(behind)
        proposals = {sequence: shadow.token_ids[lengths[sequence] :] for sequence, shadow in shadows.items()}
        return {sequence: drafts for sequence, drafts in proposals.items() if drafts}

    def _follow(self, sequence: Sequence) -> Sequence:
        """Return the shadow of a sequence, with its tokens and without proposals that were wrong."""
        shadow = self._shadows.get(sequence)
        if shadow is None:
            shadow = Sequence(
                request=_without_logprobs(sequence.request),
                index=sequence.index,
                seed=sequence.seed,
                max_total_tokens=sequence.max_total_tokens,
                detokenizer=sequence.detokenizer,
            )
            self._shadows[sequence] = shadow
        common = _common_prefix(shadow.token_ids, sequence.token_ids, start=shadow.num_prompt_tokens)
        if common < len(shadow.token_ids):
            shadow.edits = None  # what was counted goes by tokens that turned out wrong
        # The last token is always read again: what follows it is wanted.
        shadow.num_computed = min(shadow.num_computed, common, len(sequence.token_ids) - 1)
        shadow.token_ids = list(sequence.token_ids)
        return shadow

    def _step(self, shadows: SequenceOf[Sequence]) -> None:
        """Let shadows read what they have not read, within the budget; who is through gets a token."""
        budget = self._budget
        step = []
        for shadow in shadows:
            num_tokens = min(shadow.num_uncomputed, budget)
            if num_tokens and self._extend(shadow, num_tokens):
                step.append(Scheduled(shadow, num_tokens, samples=num_tokens == shadow.num_uncomputed))
                budget -= num_tokens
        if not step:
            return
        batch = build_batch(step, page_size=self._runner.pool.page_size, device=self._runner.torch_device)
        logits, _ = self._runner.forward(batch)
        for item in step:
            item.sequence.num_computed += item.num_tokens
        if batch.rows:
            tokens = sample(logits, batch.rows, [None] * len(batch.rows), eos_token_ids=self._eos_token_ids)
            for row, token in zip(batch.rows, tokens, strict=True):
                if not isinstance(token, EngineError):  # then it has nothing to propose
                    row.sequence.token_ids.append(token.token_id)

    def _extend(self, shadow: Sequence, num_tokens: int) -> bool:
        pool = self._runner.pool
        end = shadow.num_computed + num_tokens
        missing = pool.pages_for(end) - len(shadow.pages)
        if end > self._runner.max_model_len or missing > pool.num_free:
            return False
        if missing > 0:
            shadow.pages += pool.allocate(missing)
        return True

    def _drop_stopped(self) -> None:
        """Give back the pages of those that ended, and of those that were preempted."""
        for sequence, shadow in list(self._shadows.items()):
            if sequence.finish_reason is not None or not sequence.pages:
                del self._shadows[sequence]
                self._runner.pool.free(shadow.pages)


def _without_logprobs(request: Request) -> Request:
    """Return a request that draws the same tokens: nobody asks for the small model's log-probabilities."""
    params = dataclasses.replace(request.params, logprobs=None, prompt_logprobs=None)
    return dataclasses.replace(request, params=params)


def _common_prefix(first: list[int], second: list[int], *, start: int) -> int:
    """Return how many leading tokens are the same, given that the first `start` are."""
    length = min(len(first), len(second))
    if first[start:length] == second[start:length]:
        return length
    return next(place for place in range(start, length) if first[place] != second[place])
