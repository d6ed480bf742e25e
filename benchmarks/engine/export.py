"""Write the bundled model as the peers without GGUF want it: a Hugging Face folder, in bfloat16.

python -m benchmarks.engine.export GGUF FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GgufConfig
from transformers.utils import logging

from myllm_engine import EngineConfig
from myllm_engine.models.source import resolve_model
from myllm_engine.tokenizer import load_tokenizer


def main() -> None:
    """Dequantise and write."""
    logging.disable_progress_bar()
    gguf, folder = map(Path, sys.argv[1:])
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    # Ours, for transformers makes a wrong one of the GGUF file: it forgets to split numbers into digits.
    load_tokenizer(EngineConfig(), resolve_model("smollm2"))._tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
