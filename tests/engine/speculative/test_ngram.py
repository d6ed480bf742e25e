"""Check prompt lookup against a search through the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from myllm_engine.request import Request
from myllm_engine.sequence import Sequence
from myllm_engine.speculative.ngram import NgramProposer


def make_sequence(tokens: list[int]) -> Sequence:
    return Sequence(
        request=Request(prompt_token_ids=tokens), index=0, seed=0, max_total_tokens=10_000, detokenizer=None
    )


def search(tokens: list[int], sizes: range, count: int) -> list[int]:
    """Look for the last n tokens from the right, n falling."""
    for size in sizes:
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                return tokens[end : end + count]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    first=st.integers(1, 60),
    low=st.integers(1, 3),
    more=st.integers(0, 3),
    count=st.integers(1, 6),
)
def test_finds_what_followed_the_longest_and_latest_ngram(tokens, first, low, more, count):
    proposer = NgramProposer(min_ngram=low, max_ngram=low + more)
    sequence = make_sequence(tokens[:first])
    for token in [*tokens[first:], None]:
        expected = search(sequence.token_ids, range(low + more, low - 1, -1), count)
        assert proposer.propose({sequence: count}).get(sequence, []) == expected
        if token is not None:
            sequence.token_ids.append(token)
