from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from myllm.sse import SSEDecoder


def decode(*pieces: bytes) -> list[bytes]:
    decoder = SSEDecoder()
    return [data for piece in pieces for data in decoder.feed(piece)] + list(decoder.close())


def test_events_comments_and_both_line_ends():
    body = b": keep-alive\r\n\r\ndata: one\r\n\r\nevent: x\nid: 1\ndata: two\n\ndata:three\n\n"
    assert decode(body) == [b"one", b"two", b"three"]


def test_a_lone_carriage_return_ends_a_line_too():
    body = b"data: a\r\rdata: b\rdata: c\r\r"
    assert decode(body) == [b"a", b"b\nc"]
    assert decode(*(bytes([byte]) for byte in body)) == [b"a", b"b\nc"]
    assert decode(b"data: a\r", b"\ndata: b\r", b"", b"\n\r", b"\ndata: c\r\n\r\n") == [b"a\nb", b"c"]


def test_several_data_lines_are_one_event():
    assert decode(b"data: a\ndata: b\n\n") == [b"a\nb"]


def test_the_last_event_may_lack_its_blank_line():
    assert decode(b"data: a\n\ndata: b") == [b"a", b"b"]
    assert decode(b"data: a\n") == [b"a"]


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), min_size=1, max_size=5
    ),
    st.lists(st.integers(0, 200), max_size=10),
)
def test_cuts_anywhere_change_nothing(texts, cuts):
    body = b"".join(b"data: " + text.encode() + b"\n\n" for text in texts)
    points = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    pieces = [body[a:b] for a, b in itertools.pairwise(points)]
    assert decode(*pieces) == [text.encode() for text in texts]
