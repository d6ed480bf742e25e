"""Masks: a token is allowed where the text with it can still become what was asked for, and nowhere else."""

from __future__ import annotations

import itertools
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm_engine.constraint import Structured
from myllm_engine.errors import ConstraintError
from myllm_engine.structured import (
    GrammarCompiler,
    allowed_tokens,
    forced_tokens,
    valid_drafts,
)

VOCAB_SIZE = 49152 + 37  # some models have more logits than tokens, and not a multiple of 32
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars(tokenizer):
    compiler = GrammarCompiler(tokenizer, VOCAB_SIZE)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def token_bytes(tokenizer):
    return [
        b""
        if token_id >= tokenizer.vocab_size or tokenizer.is_special(token_id)
        else tokenizer.token_bytes(token_id)
        for token_id in range(VOCAB_SIZE)
    ]


def viable(text: bytes, language: set[bytes], token_bytes: list[bytes], eos: int) -> set[int]:
    """Return the tokens after which a text of a finite language can still be completed, by trying them all."""
    rests = {word[len(text) :] for word in language if word.startswith(text)}
    tokens = {
        index for index, piece in enumerate(token_bytes) if piece and any(r.startswith(piece) for r in rests)
    }
    return tokens | ({eos} if b"" in rests else set())


def check_walk(matcher, language, token_bytes, eos, seed) -> None:
    """Follow random allowed tokens to the end of a text, and check each mask."""
    text, rng, complete = b"", random.Random(seed), False
    while not complete:
        allowed = set(np.flatnonzero(matcher.allowed()).tolist())
        expected = viable(text, language, token_bytes, eos)
        if allowed != expected:
            # Where all texts go on alike, the tokenizer's own token for that is the only one.
            (token,) = allowed
            assert token in expected
            rests = [word[len(text) :] for word in language if word.startswith(text)]
            assert all(rest.startswith(token_bytes[token]) for rest in rests)
        token = rng.choice(sorted(allowed))
        complete = matcher.append(token)
        if token == eos:
            break
        text += token_bytes[token]
    assert text in language


@settings(max_examples=25, deadline=None)
@given(
    choices=st.lists(st.text(alphabet='abé 1\n"\\😀', min_size=1, max_size=8), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
def test_masks_of_choices(grammars, token_bytes, tokenizer, choices, seed):
    (eos,) = tokenizer.eos_token_ids
    language = {choice.encode() for choice in choices}
    check_walk(grammars.matcher(Structured.choice(choices)), language, token_bytes, eos, seed)


@pytest.mark.parametrize(
    "pattern", ["[ab]{1,3}c?", "(a|bb|abc)*z", "a?b?c?1", "(ab|a)(bc|c)", "[^c1]1[ab]|zz"]
)
def test_masks_of_regexes(grammars, token_bytes, tokenizer, pattern):
    (eos,) = tokenizer.eos_token_ids
    # All of the language up to 7 characters of this alphabet, and a regex that allows no others.
    texts = ("".join(text) for n in range(8) for text in itertools.product("abc1z", repeat=n))
    language = {text.encode() for text in texts if re.fullmatch(pattern, text)}
    lark = f"start: T\nT: /{pattern}/ & /[abc1z]{{0,7}}/\n"
    for seed in range(4):
        matcher = grammars.matcher(Structured.grammar(lark))
        check_walk(matcher, language, token_bytes, eos, seed)


def row(matcher, *drafts):
    return SimpleNamespace(sequence=SimpleNamespace(matcher=matcher), drafts=drafts)


def rows(matcher, drafts):
    return [row(matcher, *drafts[:count]) for count in range(len(drafts) + 1)]


def along(grammars, constraint, token_ids):
    """Return the masks along a text, from a fresh matcher that really follows it."""
    matcher = grammars.matcher(constraint)
    masks = [matcher.allowed()]
    for token_id in token_ids:
        matcher.append(token_id)
        masks.append(matcher.allowed())
    return masks


def test_masks_along_drafts_are_those_of_the_text_itself(grammars, tokenizer):
    person, choice = Structured.json_schema(SCHEMA), Structured.choice(["yes", "no"])
    text = tokenizer.encode('{"name":"John Smith","age":12}')
    start, drafts = text[:3], text[3:]
    matcher, other, third = grammars.matcher(person), grammars.matcher(choice), grammars.matcher(person)
    for token_id in start:
        matcher.append(token_id)
    batch = [row(None), *rows(matcher, drafts), row(other), row(None), *rows(third, text[:1])]
    for masks in (allowed_tokens(batch), allowed_tokens(batch)):
        assert masks[0] is None
        assert masks[len(drafts) + 3] is None
        expected = [
            *along(grammars, person, text)[len(start) :],
            *along(grammars, choice, []),
            *along(grammars, person, text[:1]),
        ]
        for mask, one in zip([mask for mask in masks if mask is not None], expected, strict=True):
            assert mask.shape == (VOCAB_SIZE,)
            assert (mask == one).all()
    # And the matcher is where it was.
    assert (matcher.allowed() == along(grammars, person, text)[len(start)]).all()


def test_after_a_wrong_draft_the_places_before_are_right(grammars, tokenizer):
    person = Structured.json_schema(SCHEMA)
    matcher = grammars.matcher(person)
    good = tokenizer.encode('{"name":"')
    drafts = [*good[:2], *tokenizer.encode("]"), 5]
    masks = allowed_tokens(rows(matcher, drafts))
    for mask, one in zip(masks[:3], along(grammars, person, good[:2]), strict=True):
        assert (mask == one).all()
    assert all(mask.any() for mask in masks[3:])  # nothing that a sampler could not draw from
    assert valid_drafts(matcher, drafts) == 2
    assert (matcher.allowed() == along(grammars, person, [])[0]).all()


def test_a_limit_beyond_a_draft_is_no_error_of_the_text(grammars, tokenizer):
    """Without speculation such a text would go on: the draft need not be what is drawn."""
    # Either beginning is fine; after the second the parser has more to follow than it may.
    many = "y: (/[a-z]/ | /[b-z]/ | /[c-z]/ | x)*\nx: /[a-f]/ x | x /[a-k]/ | /[a-d]/\n"
    matcher = grammars.matcher(Structured.grammar(f'start: "a" | "b" y\n{many}'))
    before = matcher.allowed()
    masks = allowed_tokens(rows(matcher, tokenizer.encode("b")))
    assert (masks[0] == before).all()
    assert isinstance(masks[1], ConstraintError)
    assert forced_tokens(matcher) == []
    assert (matcher.allowed() == before).all()
    assert matcher.append(*tokenizer.encode("a"))


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (Structured.json_schema(SCHEMA), '{"name":"Jo","age":1}'),
        (Structured.choice(["a very long choice", "no"]), "a very long choice"),
    ],
)
def test_forced_tokens_are_what_the_masks_leave(grammars, tokenizer, constraint, text):
    matcher = grammars.matcher(constraint)
    forced_in_all = 0
    for token_id in tokenizer.encode(text):
        forced = forced_tokens(matcher)
        forced_in_all += len(forced)
        masks = allowed_tokens(rows(matcher, forced))
        for token, mask in zip(forced, masks, strict=False):
            assert np.flatnonzero(mask).tolist() == [token]
        assert valid_drafts(matcher, forced) == len(forced)
        matcher.append(token_id)
    assert forced_in_all >= 4


def test_without_constraints_there_are_no_masks():
    assert allowed_tokens([row(None)] * 3) == [None] * 3
