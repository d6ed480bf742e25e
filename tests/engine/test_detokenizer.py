"""Check incremental text against decoding everything at once."""

from __future__ import annotations

import codecs
import random
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

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
    parts = pieces(Detokenizer(tokenizer, skip_special_tokens=skip), ids)
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert not any("\ufffd" in part for part in parts)


def test_a_character_comes_out_whole(tokenizer: Tokenizer):
    ids = tokenizer.encode("😀")
    assert len(ids) > 1
    assert pieces(Detokenizer(tokenizer), ids) == [*[""] * (len(ids) - 1), "😀", ""]
    # Cut in the middle, it does not come out at all.
    assert "".join(pieces(Detokenizer(tokenizer), ids[:-1])) == ""


def test_a_replacement_character_of_the_text_itself_is_kept(tokenizer: Tokenizer):
    ids = tokenizer.encode("a\ufffd")
    assert "".join(pieces(Detokenizer(tokenizer), ids)) == "a\ufffd"
    # As are broken bytes: only the first bytes of a character at the end are not text yet.
    broken = [*ids, *tokenizer.encode("😀")[1:2], *tokenizer.encode("b")]
    assert "".join(pieces(Detokenizer(tokenizer), broken)) == tokenizer.decode(broken)


def complete_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of tokens without the first bytes of a character that end it."""
    data = b"".join(tokenizer.token_bytes(token) for token in ids if not tokenizer.is_special(token))
    return codecs.utf_8_decode(data, "replace", False)[0]


def test_random_tokens_give_exactly_their_text(tokenizer: Tokenizer):
    """Feed bytes in any order, after a prompt cut off anywhere."""
    rng = random.Random(1)
    for _ in range(500):
        ids = [rng.randrange(17, 273) if rng.random() < 0.5 else rng.randrange(49152) for _ in range(30)]
        cut = rng.randrange(20)
        detokenizer = Detokenizer(tokenizer, prompt_token_ids=ids[:cut])
        text = "".join(pieces(detokenizer, ids[cut:]))
        before = complete_text(tokenizer, ids[:cut])
        assert before + text == complete_text(tokenizer, ids)


@pytest.fixture(scope="module", params=["llama", "metaspace"])
def sentencepiece(request) -> Tokenizer:
    """Return a tokenizer with byte fallback, and with the decoder of Llama 2 or of T5."""
    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += ["▁", "▁▁", "a", "▁a", "▁foo", "bar", "é", "▁é", "\ufffd"]
    model = models.BPE(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    last = decoders.Strip(" ", 1, 0) if request.param == "llama" else decoders.Metaspace()
    steps = [decoders.ByteFallback(), decoders.Fuse(), last]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), *steps] if request.param == "llama" else [steps[0], last]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return Tokenizer(fast)


def test_sentencepiece_text_is_the_whole_text_s_end(sentencepiece: Tokenizer):
    """Compare with decoding at once: prompts and completions of whole pieces, special tokens and characters."""
    rng = random.Random(2)
    characters = [[3 + byte for byte in char.encode()] for char in "x é€😀今\ufffd"]
    units = [[1], [2], *[[index] for index in range(259, sentencepiece.vocab_size)], *characters]
    for _ in range(3000):
        prompt = [token for unit in rng.choices(units, k=rng.choice([0, 1, 2, 20])) for token in unit]
        output = [token for unit in rng.choices(units, k=rng.randrange(1, 12)) for token in unit]
        skip = rng.random() < 0.8
        detokenizer = Detokenizer(sentencepiece, prompt_token_ids=prompt, skip_special_tokens=skip)
        before = sentencepiece.decode(prompt, skip_special_tokens=skip)
        whole = sentencepiece.decode(prompt + output, skip_special_tokens=skip)
        assert before + "".join(pieces(detokenizer, output)) == whole


def test_sentencepiece_with_broken_bytes_loses_nothing_else(sentencepiece: Tokenizer):
    """Byte fallback cannot decode a run with broken bytes; the pieces around it come out all the same."""
    rng = random.Random(3)
    for _ in range(3000):
        ids = [rng.randrange(3, sentencepiece.vocab_size) for _ in range(12)]
        ids = [token if rng.random() < 0.5 else rng.randrange(131, 259) for token in ids]
        cut = rng.randrange(6)
        text = "".join(pieces(Detokenizer(sentencepiece, prompt_token_ids=ids[:cut]), ids[cut:]))
        for piece in ("foo", "bar"):
            wanted = sum(piece in sentencepiece.token_text(token) for token in ids[cut:])
            assert text.count(piece) == wanted


def test_a_character_begun_by_the_prompt_comes_out_whole(tokenizer: Tokenizer, sentencepiece: Tokenizer):
    for one, ids in (
        (tokenizer, tokenizer.encode("a😀b")),
        (sentencepiece, [261, *[3 + b for b in "😀".encode()], 264]),
    ):
        detokenizer = Detokenizer(one, prompt_token_ids=ids[:2])
        assert "".join(pieces(detokenizer, ids[2:])).startswith("😀b")


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(alphabet="ab \n.é😀", max_size=40),
    stops=st.lists(st.text(alphabet="ab \n.é😀", min_size=1, max_size=4), min_size=1, max_size=3),
    include=st.booleans(),
)
def test_stop_strings_cut_the_text_wherever_the_tokens_end(tokenizer: Tokenizer, text, stops, include):
    ids = tokenizer.encode(text)
    detokenizer = Detokenizer(tokenizer, stop=stops, include_stop=include)
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
    detokenizer = Detokenizer(tokenizer, stop=["<END>"])
    text = "".join(pieces(detokenizer, ids[: len(tokenizer.encode("one two <END>"))]))
    assert (text, detokenizer.stop_string) == ("one two ", "<END>")
    # What looked like one and was none comes out in the end.
    ids = tokenizer.encode("a <EN")
    assert "".join(pieces(Detokenizer(tokenizer, stop=["<END>"]), ids)) == "a <EN"


def test_without_check_stop_nothing_is_held(tokenizer: Tokenizer):
    detokenizer = Detokenizer(tokenizer, stop=["ab"])
    (token,) = tokenizer.encode("a")
    assert detokenizer.append(token, check_stop=False) == "a"
    assert detokenizer.append(token, check_stop=True) == ""


def test_many_long_stop_strings_cost_little(tokenizer: Tokenizer):
    """Compare with a plain search, on text that almost matches everywhere; and keep the time in bounds."""
    stops = ["a" * length + "b" for length in range(1, 64)]
    detokenizer = Detokenizer(tokenizer, stop=stops)
    ids = tokenizer.encode("a") * 1500
    started = time.perf_counter()
    assert "".join(detokenizer.append(token) for token in ids) == "a" * (1500 - 63)
    assert time.perf_counter() - started < 1.5
    (b,) = tokenizer.encode("b")
    assert detokenizer.append(b) == ""
    assert detokenizer.stop_string == "a" * 63 + "b"
