"""Check which patterns may be looked for, and which texts repeat themselves."""

from __future__ import annotations

import pytest

from myllm_engine.errors import InvalidRequestError
from myllm_engine.repetition import Repetition


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_pattern_size": 0, "min_count": 2}, "`max_pattern_size`"),
        ({"max_pattern_size": 257, "min_count": 2}, "`max_pattern_size`"),
        ({"max_pattern_size": "3", "min_count": 2}, "`max_pattern_size`"),
        ({"max_pattern_size": 4, "min_pattern_size": 5, "min_count": 2}, "`min_pattern_size`"),
        ({"max_pattern_size": 4, "min_count": 1}, "`min_count`"),
        ({"max_pattern_size": 256, "min_count": 9}, "`min_count`"),
    ],
)
def test_bad_patterns_are_refused(fields, says):
    with pytest.raises(InvalidRequestError, match=says) as caught:
        Repetition(**fields)
    assert caught.value.param == "repetition_detection"


def test_repetitions_are_found_where_the_text_ends():
    twice = Repetition(max_pattern_size=3, min_count=2)
    assert twice.found([5, 5])
    assert twice.found([9, 1, 2, 3, 1, 2, 3])
    assert not twice.found([1, 2, 3, 1, 2, 3, 4])
    assert not twice.found([1, 2, 3, 4, 1, 2, 3, 4])  # longer than what is looked for
    assert not twice.found([3, 1, 2, 3])
    long = Repetition(max_pattern_size=3, min_pattern_size=2, min_count=3)
    assert long.found([7, 7, 7, 7, 7, 7])
    assert not long.found([7, 7, 7, 7, 7])
    assert not long.found([])
