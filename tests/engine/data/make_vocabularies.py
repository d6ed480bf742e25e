r"""Write small vocabularies with llama.cpp's token ids of its own test texts.

llama.cpp's source has vocabularies of known models (`models/ggml-vocab-*.gguf`), texts beside them (`*.gguf.inp`)
and the ids that they must get (`*.gguf.out`). The vocabularies are megabytes; of each, this keeps the tokens that
occur in the texts and the merges that make them: no other could be used. Ids stay as they are.

Run it only to change the reference; llama.cpp's source is in llama-cpp-python's source distribution:

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz
    python tests/engine/data/make_vocabularies.py llama_cpp_python-*/vendor/llama.cpp/models \
        tests/engine/data/llama_cpp_vocabularies.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from myllm_engine.models.gguf import read_metadata

NAMES = [
    "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2",
    "qwen35", "starcoder",
]  # fmt: skip
KEPT = (
    "model",
    "pre",
    "add_bos_token",
    "add_space_prefix",
    "bos_token_id",
    "eos_token_id",
    "unknown_token_id",
)
SEPARATOR = "\n__ggml_vocab_test__\n"
NORMAL = 1


def reduce(path: Path) -> dict[str, Any]:
    """Return one vocabulary's metadata, tokens as `[id, text, type, score]`, and its texts with their ids."""
    metadata = read_metadata(path)
    texts = path.with_suffix(".gguf.inp").read_text(encoding="utf-8").split(SEPARATOR)
    lines = path.with_suffix(".gguf.out").read_text(encoding="utf-8").splitlines()
    cases = [[text, [int(item) for item in line.split()]] for text, line in zip(texts, lines, strict=False)]
    sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    level = ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [
        "▁" + text.replace(" ", "▁")
        if sentencepiece
        else "".join(piece for piece, _ in level.pre_tokenize_str(text))
        for text, _ in cases
    ]
    everything = "\0".join([*spelled, *(text for text, _ in cases)])
    always = set(ByteLevel.alphabet()) | {f"<0x{byte:02X}>" for byte in range(256)}
    ends = {metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "unknown")}
    types = metadata["tokenizer.ggml.token_type"]
    scores = metadata.get("tokenizer.ggml.scores")
    tokens = [
        [index, token, types[index], scores[index] if scores else 0]
        for index, token in enumerate(metadata["tokenizer.ggml.tokens"])
        if token in always or index in ends or token in everything
    ]
    kept = {token for _, token, _, _ in tokens}
    merges = [
        merge for merge in metadata.get("tokenizer.ggml.merges", []) if merge.replace(" ", "", 1) in kept
    ]
    return {
        "metadata": {
            f"tokenizer.ggml.{key}": value
            for key in KEPT
            if (value := metadata.get(f"tokenizer.ggml.{key}")) is not None
        },
        "tokens": tokens,
        "merges": merges,
        "cases": cases,
    }


def main() -> None:
    folder, output = map(Path, sys.argv[1:])
    vocabularies = {name: reduce(folder / f"ggml-vocab-{name}.gguf") for name in NAMES}
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in vocabularies.items()
    ]
    output.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
