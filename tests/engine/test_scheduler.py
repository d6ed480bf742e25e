"""Check the scheduler and the page pool under random work: no page is lost or shared, and everything ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_engine.batch import build_batch
from myllm_engine.kv_cache import PagePool
from myllm_engine.request import Request
from myllm_engine.scheduler import Scheduled, Scheduler
from myllm_engine.sequence import Sequence


def make_sequence(
    tokens: int | list[int], max_tokens: int, *, priority: int = 0, salt: bytes = b"", drafts: int = 0
) -> Sequence:
    prompt = list(range(tokens)) if isinstance(tokens, int) else tokens
    request = Request(prompt_token_ids=prompt, priority=priority)
    return Sequence(
        request=request,
        index=0,
        seed=0,
        max_total_tokens=len(prompt) + max_tokens,
        detokenizer=None,
        salt=salt,
    )


class Machine:
    """Stand for the model: keep which tokens each slot of each page was written for, and check what is read.

    A key of a layer is a function of all tokens up to its own; so a slot stands for exactly them.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.written: dict[tuple[int, int], tuple[int, ...]] = {}

    def run(self, step: list[Scheduled]) -> None:
        page_size = self.scheduler.pool.page_size
        texts = {}
        writers: dict[tuple[int, int], Sequence] = {}
        for item in step:
            sequence = item.sequence
            drafts = sequence.drafts if item.samples else []
            texts[sequence] = (*sequence.token_ids, *drafts)[: sequence.num_computed + item.num_tokens]
            assert len(texts[sequence]) == sequence.num_computed + item.num_tokens
            for place in range(sequence.num_computed, len(texts[sequence])):
                slot = sequence.pages[place // page_size], place % page_size
                assert slot not in writers, "two sequences write one slot"
                writers[slot] = sequence
                self.written[slot] = texts[sequence][: place + 1]
        # Whoever else holds a page that was written to reads it as the writer wrote it.
        for sequence, text in texts.items():
            for place in range(len(text)):
                slot = sequence.pages[place // page_size], place % page_size
                assert self.written[slot] == text[: place + 1], "a sequence reads what is not its own"


def check_pages(scheduler: Scheduler) -> None:
    pool = scheduler.pool
    held: dict[int, int] = {}
    for sequence in scheduler.running:
        assert len(sequence.pages) == len(set(sequence.pages))
        for page in sequence.pages:
            held[page] = held.get(page, 0) + 1
    assert 0 not in held
    assert len(held) + pool.num_free == pool.num_total
    assert {page: count for page, count in enumerate(pool._holders) if count} == held
    assert not any(sequence.pages for sequence in scheduler.waiting)
    assert {page: key for key, page in pool._page_of.items()} == pool._key_of


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=25),
    arrivals=st.lists(st.integers(0, 30), min_size=25, max_size=25),
    priorities=st.lists(st.integers(0, 2), min_size=25, max_size=25),
    aborts=st.dictionaries(st.integers(0, 24), st.integers(0, 40)),
    page_size=st.integers(1, 8),
    spare_pages=st.integers(0, 20),
    max_num_seqs=st.integers(1, 8),
    extra_budget=st.integers(0, 30),
    alphabet=st.integers(1, 3),
    chance=st.randoms(use_true_random=False),
)
def test_random_work_ends_and_no_page_is_lost_or_shared_wrongly(
    sizes,
    arrivals,
    priorities,
    aborts,
    page_size,
    spare_pages,
    max_num_seqs,
    extra_budget,
    alphabet,
    chance,
):
    needed = max(-(-(prompt + output) // page_size) for prompt, output in sizes)
    pool = PagePool(1 + needed + spare_pages, page_size)
    budget = max_num_seqs + extra_budget
    scheduler = Scheduler(pool, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
    machine = Machine(scheduler)
    # Few different tokens: beginnings are shared all the time.
    sequences = [
        make_sequence([chance.randrange(alphabet) for _ in range(prompt)], output, priority=priorities[index])
        for index, (prompt, output) in enumerate(sizes)
    ]
    ended: set[int] = set()
    for step in range(10_000):
        for index, sequence in enumerate(sequences):
            if arrivals[index] == step:
                scheduler.add(sequence)
            if aborts.get(index) == step and arrivals[index] <= step and index not in ended:
                scheduler.remove(sequence)
                ended.add(index)
        for sequence in scheduler.running:
            room = sequence.max_total_tokens - len(sequence.token_ids) - 1
            if sequence.num_uncomputed == 1 and chance.random() < 0.5:
                sequence.drafts = [chance.randrange(alphabet) for _ in range(min(chance.randrange(4), room))]
        decoding = {item for item in scheduler.running if item.num_uncomputed == 1}
        scheduled = scheduler.schedule()
        check_pages(scheduler)
        assert bool(scheduled) == scheduler.has_unfinished()
        assert len(scheduler.running) <= max_num_seqs
        assert sum(item.num_tokens for item in scheduled) <= budget
        assert len({id(item.sequence) for item in scheduled}) == len(scheduled)
        # Whoever decodes is never left out for somebody's prompt.
        assert decoding & set(scheduler.running) <= {item.sequence for item in scheduled}
        machine.run(scheduled)
        for item in scheduled:
            sequence = item.sequence
            assert item.num_tokens >= 1
            sequence.num_computed += item.num_tokens
            if item.samples:
                drafts, sequence.drafts = sequence.drafts, []
                for token in drafts[: chance.randrange(len(drafts) + 1)]:
                    sequence.token_ids.append(token)
                sequence.token_ids.append(chance.randrange(alphabet))
                sequence.num_computed = min(sequence.num_computed, len(sequence.token_ids) - 1)
                if len(sequence.token_ids) >= sequence.max_total_tokens:
                    scheduler.remove(sequence)
                    ended.add(sequences.index(sequence))
        if len(ended) == len(sequences):
            break
    assert len(ended) == len(sequences)
    assert pool.num_free == pool.num_total


def advance(step: list[Scheduled]) -> None:
    """Compute what was chosen, and draw token 0 wherever one is drawn."""
    for item in step:
        item.sequence.num_computed += item.num_tokens
        if item.samples:
            item.sequence.token_ids.append(0)


def test_pages_of_an_ended_sequence_are_found_again_until_they_are_needed():
    scheduler = Scheduler(PagePool(6, 4), max_num_seqs=4, max_num_batched_tokens=64)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    first = make_sequence(prompt, 4)
    scheduler.add(first)
    advance(scheduler.schedule())
    scheduler.remove(first)
    assert (scheduler.pool.num_free, scheduler.pool.num_cached) == (5, 2)

    other_salt = make_sequence(prompt, 1, salt=b"other")
    scheduler.add(other_salt)
    assert [item.num_tokens for item in scheduler.schedule()] == [9]
    scheduler.remove(other_salt)

    again = make_sequence([*prompt[:8], 70, 71], 4)
    scheduler.add(again)
    assert [item.num_tokens for item in scheduler.schedule()] == [2]
    assert again.num_cached_tokens == 8
    scheduler.remove(again)

    # The last token is computed again though its page is there: its logits are wanted.
    whole = make_sequence(prompt[:8], 4)
    scheduler.add(whole)
    assert [item.num_tokens for item in scheduler.schedule()] == [4]
    scheduler.remove(whole)

    large = make_sequence([9] * 19, 1)
    scheduler.add(large)
    advance(scheduler.schedule())
    scheduler.remove(large)
    late = make_sequence(prompt, 1)
    scheduler.add(late)
    assert [item.num_tokens for item in scheduler.schedule()] == [9]


def test_sequences_admitted_together_share_what_the_first_of_them_computes():
    scheduler = Scheduler(PagePool(20, 4), max_num_seqs=4, max_num_batched_tokens=64)
    sequences = [make_sequence(10, 4) for _ in range(3)]
    for sequence in sequences:
        scheduler.add(sequence)
    assert [item.num_tokens for item in scheduler.schedule()] == [10, 2, 2]
    assert sequences[0].pages[:2] == sequences[1].pages[:2] == sequences[2].pages[:2]
    assert len({sequence.pages[2] for sequence in sequences}) == 3


def test_priority_goes_before_age():
    scheduler = Scheduler(PagePool(20, 4), max_num_seqs=1, max_num_batched_tokens=64)
    late, soon, first = (make_sequence([index] * 3, 1, priority=p) for index, p in enumerate((5, 0, -1)))
    for sequence in (late, soon, first):
        scheduler.add(sequence)
    order = []
    while scheduler.has_unfinished():
        [item] = scheduler.schedule()
        order.append(item.sequence)
        scheduler.remove(item.sequence)
    assert order == [first, soon, late]


def test_a_fork_shares_whole_pages_and_copies_the_last():
    scheduler = Scheduler(PagePool(20, 4), max_num_seqs=4, max_num_batched_tokens=64)
    parent = make_sequence(6, 10)
    scheduler.add(parent)
    advance(scheduler.schedule())
    child = make_sequence(parent.token_ids, 10)
    source, target = scheduler.fork(parent, child)
    assert (source, target) == (parent.pages[1], child.pages[1])
    assert parent.pages[0] == child.pages[0]
    assert [item.num_tokens for item in scheduler.schedule()] == [1, 1]
    check_pages(scheduler)
    # Without a free seat the child waits, and finds the whole page when it gets one.
    scheduler.max_num_seqs = 2
    waiting = make_sequence(parent.token_ids, 10)
    assert scheduler.fork(parent, waiting) is None
    scheduler.remove(child)
    step = {item.sequence: item.num_tokens for item in scheduler.schedule()}
    assert step[waiting] == 3


def test_sequences_with_nothing_to_compute_give_up_pages_that_others_need():
    scheduler = Scheduler(PagePool(5, 4), max_num_seqs=4, max_num_batched_tokens=64)
    idle, blocked = make_sequence([1] * 8, 4), make_sequence([2] * 12, 4, priority=-1)
    scheduler.add(idle)
    [item] = scheduler.schedule()
    idle.num_computed += item.num_tokens
    scheduler.add(blocked)
    assert [(item.sequence, item.num_tokens) for item in scheduler.schedule()] == [(blocked, 12)]
    assert idle in scheduler.waiting


def test_long_prompts_are_computed_in_chunks_next_to_decodes():
    scheduler = Scheduler(PagePool(100, 4), max_num_seqs=4, max_num_batched_tokens=10)
    short, long = make_sequence([7] * 3, 5), make_sequence(25, 5)
    scheduler.add(short)
    scheduler.add(long)
    seen = []
    for _ in range(4):
        step = scheduler.schedule()
        seen.append([(item.sequence is long, item.num_tokens, item.samples) for item in step])
        advance(step)
    assert seen == [
        [(False, 3, True), (True, 7, False)],
        [(False, 1, True), (True, 9, False)],
        [(False, 1, True), (True, 9, True)],
        [(False, 1, True), (True, 1, True)],
    ]


def test_the_newest_is_preempted_and_recomputes_its_tokens():
    scheduler = Scheduler(PagePool(5, 4), max_num_seqs=4, max_num_batched_tokens=32)
    old, new = make_sequence([7] * 8, 8), make_sequence(8, 8)
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
    # Its second page was handed out again; the first one is still there.
    assert [(item.sequence, item.num_tokens) for item in scheduler.schedule()] == [(new, 5)]


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
    first, second, third = make_sequence([5] * 2, 5), make_sequence([6] * 5, 5), make_sequence(9, 5)
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
    assert [row.sequence for row in batch.rows] == [second, first, third]
    assert [len(table) for table in batch.page_tables] == [2, 1, 3]
    for row, (sequence, place) in enumerate([(second, 5), (first, 2), *((third, i) for i in range(9))]):
        assert int(batch.slots[row]) == sequence.pages[place // 4] * 4 + place % 4
