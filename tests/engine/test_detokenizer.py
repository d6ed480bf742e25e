"""Check incremental text against decoding everything at once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_engine.detokenizer import Detokenizer
from myllm_engine.tokenizer import Tokenizer

TEXTS = [
    "Hello, world! It's 12:30.",
    "😀👩‍👩‍👧‍👦🇩🇪 emoji 🎉🎉",
    "今日は良い天気です。नमस्ते مرحبا Привет",
    "tabs\t\tand\n\n\nlines   and spaces  ",
    "def f(x):\n    return {'a': [1, 2, 3]}\n",
    "<|im_start|>user\nhi<|im_end|>\n",
]


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    parts = [detokenizer.append(token) for token in ids]
    return [*parts, detokenizer.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [True, False])
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, text, skip):
    ids = tokenizer.encode(text)
    parts = pieces(Detokenizer(tokenizer.backend, skip_special_tokens=skip), ids)
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert not any("\ufffd" in part for part in parts)


def test_a_character_comes_out_whole(tokenizer: Tokenizer):
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    assert pieces(Detokenizer(tokenizer.backend), ids) == [*[""] * (len(ids) - 1), "😀", ""]
    # Cut in the middle, it does not come out at all.
    assert "".join(pieces(Detokenizer(tokenizer.backend), ids[:-1])) == ""


def test_random_tokens_never_lose_text(tokenizer: Tokenizer):
    """Feed bytes in any order: what comes out begins the decoded text, and only broken bytes are missing."""
    rng = random.Random(1)
    for _ in range(300):
        ids = [rng.randrange(17, 273) if rng.random() < 0.5 else rng.randrange(49152) for _ in range(30)]
        text = "".join(pieces(Detokenizer(tokenizer.backend), ids))
        whole = tokenizer.decode(ids)
        assert whole.startswith(text)
        assert len(whole) == len(text) or "\ufffd" in whole[len(text) :]


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab \n.é😀", max_size=40),
    stops=st.lists(st.text(alphabet="ab \n.é😀", min_size=1, max_size=4), min_size=1, max_size=3),
    include=st.booleans(),
)
def test_stop_strings_cut_the_text_wherever_the_tokens_end(tokenizer: Tokenizer, text, stops, include):
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer.backend, stop=stops, include_stop=include)
    emitted = ""
    for count, token in enumerate(ids, start=1):
        emitted += detokenizer.append(token)
        if detokenizer.stop_string is not None:
            break
        # Nothing that could still become a stop string is out.
        seen = tokenizer.decode(ids[:count]).rstrip("\ufffd")
        for place in range(len(emitted)):
            assert not any(stop.startswith(seen[place:]) for stop in stops)
    emitted += detokenizer.finish()
    if not any(stop in text for stop in stops):
        assert detokenizer.stop_string is None
        assert emitted == text
        return
    stop = detokenizer.stop_string
    assert stop in stops
    assert text.startswith(emitted)
    place = len(emitted) - (len(stop) if include else 0)
    assert text[place:].startswith(stop)
    before = text[: place + len(stop) - 1]
    # No stop string was complete earlier, but for one that ends inside the same token.
    assert not any(other in before[: max(0, place)] for other in stops)


def test_a_stop_string_over_several_tokens_is_never_emitted_in_part(tokenizer: Tokenizer):
    ids = tokenizer.encode("one two <END> three")
    assert len(tokenizer.encode("<END>")) > 1
    detokenizer = Detokenizer(tokenizer.backend, stop=["<END>"])
    text = "".join(pieces(detokenizer, ids[: len(tokenizer.encode("one two <END>"))]))
    assert (text, detokenizer.stop_string) == ("one two ", "<END>")
    # What looked like one and was none comes out in the end.
    ids = tokenizer.encode("a <EN")
    assert "".join(pieces(Detokenizer(tokenizer.backend, stop=["<END>"]), ids)) == "a <EN"


def test_without_check_stop_nothing_is_held(tokenizer: Tokenizer):
    detokenizer = Detokenizer(tokenizer.backend, stop=["ab"])
    (token,) = tokenizer.encode("a")
    assert detokenizer.append(token, check_stop=False) == "a"
    assert detokenizer.append(token, check_stop=True) == ""
