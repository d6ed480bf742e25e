"""Check token ids against llama.cpp's, for the kinds of vocabularies that its tests have (`data/make_vocabularies.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from myllm_engine.models.gguf_splits import ADD_BOS, IGNORE_MERGES, SPLITS
from myllm_engine.models.gguf_tokenizer import build_tokenizer

DATA = Path(__file__).parents[1] / "data" / "llama_cpp_vocabularies.json"
VOCABULARIES: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))


def metadata_of(vocabulary: dict[str, Any]) -> dict[str, Any]:
    """Return the metadata of a file: tokens that no text needs are filled with others that no text has."""
    tokens = vocabulary["tokens"]
    size = tokens[-1][0] + 1
    texts, types, scores = [f"\0{index}" for index in range(size)], [1] * size, [0.0] * size
    for index, text, kind, score in tokens:
        texts[index], types[index], scores[index] = text, kind, score
    metadata = vocabulary["metadata"] | {
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": vocabulary["merges"],
    }
    if vocabulary["metadata"]["tokenizer.ggml.model"] == "llama":
        metadata["tokenizer.ggml.scores"] = scores
    return metadata


@pytest.mark.parametrize("name", VOCABULARIES)
def test_ids_equal_llama_cpps_and_decode_to_the_text(name):
    vocabulary = VOCABULARIES[name]
    tokenizer = build_tokenizer(metadata_of(vocabulary))
    cases = vocabulary["cases"]
    assert len(cases) >= 46
    for text, ids in cases:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, text
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("name", "flags", "before", "after"),
    [
        ("llama-bpe", {}, [128000], []),
        ("llama-spm", {}, [1], []),
        ("llama-spm", {"add_bos_token": False}, [], []),
        ("llama-spm", {"add_eos_token": True}, [1], [2]),
        ("gpt-2", {}, [], []),
        ("gpt-2", {"add_bos_token": True}, [50256], []),
    ],
)
def test_beginning_and_end_of_sequence(name, flags, before, after):
    metadata = metadata_of(VOCABULARIES[name])
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in flags.items()}
    tokenizer = build_tokenizer(metadata)
    plain = tokenizer.encode("Hello", add_special_tokens=False).ids
    assert tokenizer.encode("Hello").ids == [*before, *plain, *after]


def test_sentencepiece_without_the_space_in_front():
    metadata = metadata_of(VOCABULARIES["llama-spm"]) | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = build_tokenizer(metadata)
    tokens = tokenizer.encode("Hello", add_special_tokens=False).tokens
    assert not tokens[0].startswith("▁")
    assert tokenizer.decode(tokenizer.encode(" Hello", add_special_tokens=False).ids) == " Hello"


def test_other_kinds_are_not_guessed():
    metadata = metadata_of(VOCABULARIES["gpt-2"])
    assert build_tokenizer(metadata | {"tokenizer.ggml.pre": "nobody-knows"}) is None
    assert build_tokenizer(metadata | {"tokenizer.ggml.model": "bert"}) is None


@pytest.mark.parametrize("pre", sorted(SPLITS))
def test_every_split_compiles_and_loses_nothing(pre):
    metadata = metadata_of(VOCABULARIES["gpt-2"]) | {"tokenizer.ggml.pre": pre}
    tokenizer = build_tokenizer(metadata)
    for text, _ in VOCABULARIES["gpt-2"]["cases"]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_names_with_their_own_rules_have_a_split():
    assert set(SPLITS) >= IGNORE_MERGES | ADD_BOS
