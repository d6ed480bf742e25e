"""Check that proposals stop where they don't pay."""

from __future__ import annotations

import pytest

from myllm_engine.batch import build_batch
from myllm_engine.kv_cache import PagePool
from myllm_engine.request import Request
from myllm_engine.scheduler import Scheduler
from myllm_engine.sequence import Sequence
from myllm_engine.speculative.control import Speculator, StepCost


def test_cost_of_one_more_token_is_learnt_from_steps():
    cost = StepCost()
    for tokens in (1, 3, 5, 2, 8, 4, 1, 6) * 5:
        cost.observe(tokens, 0.010 + 0.0005 * tokens)
    # Alone a token costs 10.5 ms and one more 0.5; of 32 each costs 0.8125 ms and one more 0.5.
    assert cost.share(1) == pytest.approx(0.5 / 10.5, rel=1e-3)
    assert cost.share(32) == pytest.approx(0.5 * 32 / 26, rel=1e-3)


class Oracle:
    """Propose what will be right in one of `every` proposals (0: in none)."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.asked: list[int] = []

    def propose(self, wanted):
        proposals = {}
        for sequence, count in wanted.items():
            self.asked.append(count)
            right = self.every and len(self.asked) % self.every == 0
            proposals[sequence] = [0 if right else 1] * count
        return proposals


def generate(oracle: Oracle, *, each: float) -> tuple[Speculator, int]:
    """Decode 600 tokens of zeros with steps of `10 + each * tokens` ms; return the steps it took."""
    import torch

    speculator = Speculator(oracle, num_tokens=4)
    scheduler = Scheduler(PagePool(100, 16), max_num_seqs=1, max_num_batched_tokens=64)
    sequence = Sequence(
        request=Request(prompt_token_ids=[0] * 5), index=0, seed=0, max_total_tokens=605, detokenizer=None
    )
    scheduler.add(sequence)
    steps = 0
    while len(sequence.token_ids) < 605:
        steps += 1
        speculator.propose(scheduler.running)
        batch = build_batch(scheduler.schedule(), page_size=16, device=torch.device("cpu"))
        sequence.num_computed += batch.input_ids.shape[0]
        right = 0
        while right < len(sequence.drafts) and sequence.drafts[right] == 0:
            right += 1
        sequence.token_ids += [0] * (right + 1)
        sequence.drafts = []
        sequence.num_computed = len(sequence.token_ids) - 1
        speculator.observe(batch, 0.010 + each * batch.input_ids.shape[0])
    return speculator, steps


def test_good_proposals_go_on():
    speculator, steps = generate(Oracle(every=1), each=0.0005)
    assert steps < 600 / 4
    assert speculator.num_accepted == speculator.num_drafted > 400


def test_bad_proposals_end_but_for_rare_trials():
    oracle = Oracle(every=0)
    speculator, steps = generate(oracle, each=0.0005)
    assert steps == 600
    assert speculator.num_accepted == 0
    # Trials at growing distances: of 600 steps few have drafts.
    assert 3 <= len(oracle.asked) <= 60


def test_whether_the_same_proposals_pay_is_a_matter_of_what_a_token_costs():
    cheap, dear = Oracle(every=2), Oracle(every=2)
    _, steps = generate(cheap, each=0.0005)
    assert steps < 400
    generate(dear, each=0.100)
    assert sum(dear.asked) < 0.3 * sum(cheap.asked)
