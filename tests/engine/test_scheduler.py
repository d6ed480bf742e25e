"""Check the scheduler and the page pool under random work: no page is lost or shared, and everything ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_engine.batch import build_batch
from myllm_engine.kv_cache import PagePool
from myllm_engine.request import Request
from myllm_engine.scheduler import Scheduler
from myllm_engine.sequence import Sequence


def make_sequence(length: int, max_tokens: int) -> Sequence:
    request = Request(prompt_token_ids=list(range(length)))
    return Sequence(request=request, index=0, seed=0, max_total_tokens=length + max_tokens, detokenizer=None)


def check_pages(scheduler: Scheduler) -> None:
    held = [page for sequence in scheduler.running for page in sequence.pages]
    assert len(held) == len(set(held))
    assert 0 not in held
    assert len(held) + scheduler.pool.num_free == scheduler.pool.num_total
    assert not any(sequence.pages for sequence in scheduler.waiting)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=25),
    arrivals=st.lists(st.integers(0, 30), min_size=25, max_size=25),
    aborts=st.dictionaries(st.integers(0, 24), st.integers(0, 40)),
    page_size=st.integers(1, 8),
    spare_pages=st.integers(0, 20),
    max_num_seqs=st.integers(1, 8),
    extra_budget=st.integers(0, 30),
)
def test_random_work_ends_and_loses_no_page(
    sizes, arrivals, aborts, page_size, spare_pages, max_num_seqs, extra_budget
):
    needed = max(-(-(prompt + output) // page_size) for prompt, output in sizes)
    pool = PagePool(1 + needed + spare_pages, page_size)
    budget = max_num_seqs + extra_budget
    scheduler = Scheduler(pool, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    sequences = [make_sequence(*size) for size in sizes]
    ended: set[int] = set()
    for step in range(10_000):
        for index, sequence in enumerate(sequences):
            if arrivals[index] == step:
                scheduler.add(sequence)
            if aborts.get(index) == step and arrivals[index] <= step and index not in ended:
                scheduler.remove(sequence)
                ended.add(index)
        scheduled = scheduler.schedule()
        check_pages(scheduler)
        assert bool(scheduled) == scheduler.has_unfinished()
        assert len(scheduler.running) <= max_num_seqs
        assert sum(item.num_tokens for item in scheduled) <= budget
        assert len({id(item.sequence) for item in scheduled}) == len(scheduled)
        # Whoever decodes is never left out for somebody's prompt.
        decoding = [item for item in scheduler.running if item.num_uncomputed == 1]
        assert {id(item) for item in decoding} <= {id(item.sequence) for item in scheduled}
        for item in scheduled:
            sequence, samples = item.sequence, item.samples
            assert item.num_tokens >= 1
            assert len(sequence.pages) * page_size >= sequence.num_computed + item.num_tokens
            sequence.num_computed += item.num_tokens
            if samples:
                sequence.token_ids.append(0)
                if len(sequence.token_ids) == sequence.max_total_tokens:
                    scheduler.remove(sequence)
                    ended.add(sequences.index(sequence))
        if len(ended) == len(sequences):
            break
    assert len(ended) == len(sequences)
    assert pool.num_free == pool.num_total


def test_long_prompts_are_computed_in_chunks_next_to_decodes():
    scheduler = Scheduler(PagePool(100, 4), max_num_seqs=4, max_num_batched_tokens=10)
    short, long = make_sequence(3, 5), make_sequence(25, 5)
    scheduler.add(short)
    scheduler.add(long)
    seen = []
    for _ in range(4):
        step = scheduler.schedule()
        seen.append([(item.sequence is long, item.num_tokens, item.samples) for item in step])
        for item in step:
            samples = item.samples
            item.sequence.num_computed += item.num_tokens
            if samples:
                item.sequence.token_ids.append(0)
    assert seen == [
        [(False, 3, True), (True, 7, False)],
        [(False, 1, True), (True, 9, False)],
        [(False, 1, True), (True, 9, True)],
        [(False, 1, True), (True, 1, True)],
    ]


def test_the_newest_is_preempted_and_recomputes_its_tokens():
    scheduler = Scheduler(PagePool(5, 4), max_num_seqs=4, max_num_batched_tokens=32)
    old, new = make_sequence(8, 8), make_sequence(8, 8)
    scheduler.add(old)
    scheduler.add(new)
    for item in scheduler.schedule():
        item.sequence.num_computed += item.num_tokens
        item.sequence.token_ids.append(0)
    step = scheduler.schedule()
    assert [(item.sequence, item.num_tokens) for item in step] == [(old, 1)]
    assert (new.pages, new.num_computed, len(new.token_ids)) == ([], 0, 9)
    assert scheduler.num_preemptions == 1
    scheduler.remove(old)
    assert [(item.sequence, item.num_tokens) for item in scheduler.schedule()] == [(new, 9)]


def test_pool_refuses_misuse():
    pool = PagePool(4, 16)
    pages = pool.allocate(3)
    assert sorted(pages) == [1, 2, 3]
    with pytest.raises(RuntimeError, match="1 KV pages were asked for, 0 are free"):
        pool.allocate(1)
    pool.free(pages[:1])
    for page in (pages[0], 0):
        with pytest.raises(RuntimeError, match="freed twice"):
            pool.free([page])
    with pytest.raises(ValueError, match="at least 2"):
        PagePool(1, 16)


def test_batch_lays_out_decodes_first_and_longest_first():
    import torch

    scheduler = Scheduler(PagePool(100, 4), max_num_seqs=8, max_num_batched_tokens=12)
    first, second, third = make_sequence(2, 5), make_sequence(5, 5), make_sequence(9, 5)
    scheduler.add(first)
    scheduler.add(second)
    for item in scheduler.schedule():
        item.sequence.num_computed += item.num_tokens
        item.sequence.token_ids.append(77)
    scheduler.add(third)
    batch = build_batch(scheduler.schedule(), page_size=4, device=torch.device("cpu"))
    assert batch.input_ids.tolist() == [77, 77, *range(9)]
    assert batch.positions.tolist() == [5, 2, *range(9)]
    assert batch.query_lens == [1, 1, 9]
    assert batch.context_lens == [6, 3, 9]
    assert batch.num_decodes == 2
    assert batch.logits_index.tolist() == [0, 1, 10]
    assert batch.sampled == [second, first, third]
    assert [len(table) for table in batch.page_tables] == [2, 1, 3]
    for row, (sequence, place) in enumerate([(second, 5), (first, 2), *((third, i) for i in range(9))]):
        assert int(batch.slots[row]) == sequence.pages[place // 4] * 4 + place % 4
