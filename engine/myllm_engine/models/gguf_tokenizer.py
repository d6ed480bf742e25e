"""Build the tokenizer that a GGUF file describes, for byte-level BPE vocabularies.

transformers builds these too, but it knows the split of few `tokenizer.ggml.pre` names and gives all others
GPT-2's in silence: SmolLM2's numbers, for one, get wrong ids. The splits here are those that llama.cpp's
`src/llama-vocab.cpp` has for the name; SmolLM2's ids are compared with llama.cpp's in the tests.
"""

from __future__ import annotations

import logging
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

logger = logging.getLogger(__name__)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Names by what comes before the byte level.
_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell"}
_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo"}
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
# These vocabularies were used with whole words looked up before merging.
_IGNORE_MERGES = {"llama-bpe", "llama3", "llama-v3"}

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def build_tokenizer(metadata: dict[str, Any]) -> Tokenizer | None:
    """Build the tokenizer from a file's metadata; None when the split is not known here.

    Only for `tokenizer.ggml.model` = "gpt2", llama.cpp's name for byte-level BPE.
    """
    pre = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or pre not in _DIGITS | _GPT2 | set(_SPLITS):
        return None
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _IGNORE_MERGES))
    if pre in _SPLITS:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLITS[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = [pre_tokenizers.Digits(individual_digits=True)] if pre in _DIGITS else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata.get("tokenizer.ggml.token_type", [])
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=False)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    # add_tokens keeps each one's own `special`; order and ids are those of the vocabulary.
    tokenizer.add_tokens(added)
    tokenizer.post_processor = _post_processor(metadata, tokens)
    return tokenizer


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


def _post_processor(metadata: dict[str, Any], tokens: list[str]) -> Any:
    before = after = ""
    special: list[tuple[str, int]] = []
    for flag, key in (("add_bos_token", "bos_token_id"), ("add_eos_token", "eos_token_id")):
        index = metadata.get(f"tokenizer.ggml.{key}")
        if metadata.get(f"tokenizer.ggml.{flag}") and index is not None:
            special.append((tokens[index], index))
            if flag == "add_bos_token":
                before = f"{tokens[index]} "
            else:
                after = f" {tokens[index]}"
    if not special:
        return processors.ByteLevel(trim_offsets=True)
    return processors.TemplateProcessing(single=f"{before}$A{after}", special_tokens=special)
