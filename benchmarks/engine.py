"""Decode speed of the engine against `transformers.generate`, on the bundled model, both in one process.

    python -m benchmarks.engine [--batch-sizes 1 8 32] [--dtype bfloat16] [--save FILE.json]

Both get the same random prompts of 128 tokens and make 64 tokens each, greedily, with EOS ignored.
transformers runs them as one static batch, which is its best case; the engine as requests of their own. The
engine and the peer take turns, and the best of each counts: on a shared machine only ratios of one run mean
anything.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from myllm_engine import LLM, SamplingParams

# isort: split
# The engine goes first: it sets OpenMP's wait policy, which torch reads when it is loaded.
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, GgufConfig

from benchmarks._machine import describe
from myllm_engine.models.source import resolve_model

PROMPT_TOKENS, NEW_TOKENS, ROUNDS = 128, 64, 3


def main() -> None:
    """Measure, print a table, and save the figures if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--save", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    console = Console()
    console.print("Loading the model twice …")
    llm = LLM("smollm2", dtype=arguments.dtype, device="cpu", max_num_seqs=max(arguments.batch_sizes))
    peer = _load_peer(arguments.dtype)
    rows = []
    for size in arguments.batch_sizes:
        generator = random.Random(size)
        prompts = [[generator.randrange(100, 40000) for _ in range(PROMPT_TOKENS)] for _ in range(size)]
        ours, theirs = _best_of_turns(partial(_ours, llm, prompts), partial(_theirs, peer, prompts))
        tokens = size * NEW_TOKENS
        rows.append(
            {
                "batch_size": size,
                "myllm_tokens_per_second": round(tokens / ours, 1),
                "transformers_tokens_per_second": round(tokens / theirs, 1),
                "ratio": round(theirs / ours, 2),
            }
        )
    table = Table(title=f"Prefill {PROMPT_TOKENS} + decode {NEW_TOKENS}, {arguments.dtype}, tokens/s")
    for heading in ("batch", "myllm", "transformers", "ratio"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    if arguments.save:
        machine = describe("torch", "transformers")
        arguments.save.write_text(
            json.dumps({"machine": machine, "dtype": arguments.dtype, "rows": rows}, indent=1) + "\n"
        )


def _load_peer(dtype: str) -> torch.nn.Module:
    source = resolve_model("smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        source.path,
        gguf_file=source.gguf_file,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype),
    )
    return model.eval()


def _best_of_turns(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for place, run in enumerate((ours, theirs)):
            start = time.perf_counter()
            run()
            best[place] = min(best[place], time.perf_counter() - start)
    return best[0], best[1]


def _ours(llm: LLM, prompts: list[list[int]]) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True)
    results = llm.generate(prompts, params)
    assert all(len(result.outputs[0].token_ids) == NEW_TOKENS for result in results)


def _theirs(model: torch.nn.Module, prompts: list[list[int]]) -> None:
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        result = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
    assert result.shape[1] == PROMPT_TOKENS + NEW_TOKENS


if __name__ == "__main__":
    main()
