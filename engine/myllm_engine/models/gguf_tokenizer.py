"""Build the tokenizer that a GGUF file describes: byte-level BPE, and sentencepiece's.

transformers builds these too, but it knows the split of few `tokenizer.ggml.pre` names and gives all others
GPT-2's in silence: SmolLM2's numbers, for one, get wrong ids. The ids here are compared with llama.cpp's in
the tests, for vocabularies of every kind of split that it has reference ids for.
"""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from .gguf_splits import ADD_BOS, IGNORE_MERGES, SPLITS

logger = logging.getLogger(__name__)

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer | None:
    """Build the tokenizer from a file's metadata; None when the kind or the split is not known here.

    Known are `tokenizer.ggml.model` = "gpt2", llama.cpp's name for byte-level BPE, with the splits of
    `gguf_splits`, and "llama", its name for sentencepiece's BPE with bytes for unknown characters.
    """
    match metadata.get("tokenizer.ggml.model"):
        case "gpt2" if metadata.get("tokenizer.ggml.pre") in SPLITS:
            tokenizer = _byte_level(metadata)
        case "llama" if "tokenizer.ggml.scores" in metadata:
            tokenizer = _sentencepiece(metadata)
        case _:
            return None
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type", [])
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    # add_tokens keeps each one's own `special`; order and ids are those of the vocabulary.
    tokenizer.add_tokens(added)
    if template := _template(metadata):
        tokenizer.post_processor = template
    return tokenizer


def _byte_level(metadata: dict[str, Any]) -> Tokenizer:
    pre = metadata["tokenizer.ggml.pre"]
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in IGNORE_MERGES))
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in SPLITS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _sentencepiece(metadata: dict[str, Any]) -> Tokenizer:
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(vocab, metadata["tokenizer.ggml.scores"]),
            unk_token=tokens[metadata.get("tokenizer.ggml.unknown_token_id", 0)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend("▁")] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the merges that make each token, the best score first: what sentencepiece merges first."""
    merges = []
    for token, index in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[index], index, vocab[left], vocab[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def warn_of_unknown_split(metadata: dict[str, Any], path: str) -> None:
    """Log that token ids may be wrong when neither we nor transformers know the vocabulary's split."""
    pre = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        return
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as known
    except ImportError:
        known = {}
    if pre not in known:
        logger.warning(
            "The tokenizer split %r (`tokenizer.ggml.pre` of %s) is not known: GPT-2's is used, and token "
            "ids may be wrong. Pass `tokenizer=` with the folder or hub id of the original model.",
            pre,
            path,
        )


def special_tokens(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the special tokens by transformers' names (`bos_token`, ...)."""
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    tokens = metadata["tokenizer.ggml.tokens"]
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: tokens[index] for name, index in found.items() if index is not None and index < len(tokens)}


def eos_token_ids(metadata: dict[str, Any]) -> frozenset[int]:
    """Return the ids that end a completion: end of sequence, end of turn, end of message."""
    ids = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    return frozenset(index for index in ids if index is not None)


def _template(metadata: dict[str, Any]) -> Any:
    """Return what adds the special tokens, or None when there are none to add."""
    tokens = metadata["tokenizer.ggml.tokens"]
    # llama.cpp's defaults for files that do not say.
    begins = metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") in ADD_BOS
    template = ["$A"]
    special: list[tuple[str, int]] = []
    for name, place, default in (("bos", 0, begins), ("eos", 2, False)):
        index = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default) and index is not None:
            special.append((tokens[index], index))
            template.insert(place, tokens[index])
    return processors.TemplateProcessing(single=template, special_tokens=special) if special else None
