"""Decode speed on a GPU, against the memory's bandwidth and transformers' continuous batching, in one run.

    python -m benchmarks.gpu [--quick] [--models Qwen3-0.6B …] [--save benchmarks/results/gpu.json]

The models have random weights in the shapes of real ones. For each batch size every sequence gets 128 random
tokens and makes 128 more, greedily. A step's time is set against the least that memory allows: reading the
weights and the keys and values once, at the speed of a large copy measured here. transformers' continuous
batching gets the same requests, and at last both get nano-vllm's own workload (its `bench.py`: 256 sequences,
100 to 1,024 tokens in and out, temperature 0.6), on Qwen3-0.6B's shape.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from myllm_engine import Engine, EngineConfig, Request, SamplingParams

# isort: split
# The engine goes first: it sets OpenMP's wait policy, which torch reads when it is loaded.
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, GenerationConfig

from benchmarks._machine import describe
from benchmarks._random_model import SHAPES, save_random_model

PROMPT_TOKENS, NEW_TOKENS, LONGEST = 128, 128, 2048
BATCH_SIZES = [1, 8, 32, 64, 128, 256]
Requests = list[tuple[list[int], int]]  # prompts, and how many tokens to make of each


def main() -> None:
    """Measure, print tables, and save the figures if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=list(SHAPES))
    parser.add_argument("--batch-sizes", type=int, nargs="+")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quantization", default="none", choices=["none", "int8", "int4"])
    parser.add_argument("--compile", action="store_true", help="compile the model with torch.compile")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--quick", action="store_true", help="two batch sizes and few tokens")
    parser.add_argument("--save", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    quick = arguments.quick
    on_gpu = arguments.device == "cuda"
    models = arguments.models or (list(SHAPES)[1:] if on_gpu else ["tiny"])
    sizes = arguments.batch_sizes or ([1, 4] if quick else BATCH_SIZES)
    tokens = (16, 8) if quick else (PROMPT_TOKENS, NEW_TOKENS)
    console = Console()
    bandwidth = copy_bandwidth(arguments.device, 1 << 26 if quick else 1 << 32)
    console.print(f"A copy moves {bandwidth / 1e9:,.0f} GB/s, reads and writes together")
    options = {
        "device": arguments.device,
        "quantization": arguments.quantization,
        "compile": arguments.compile,
        "max_num_seqs": max(sizes),
        "max_model_len": LONGEST,
        "enable_prefix_caching": False,  # the second run of the same prompts is measured
    }
    rows: list[dict[str, Any]] = []
    for name in models:
        with saved(name, arguments.device) as folder:
            batches = {size: fixed_requests(name, size, *tokens) for size in sizes}
            rows += ours(name, folder, batches, bandwidth, options)
            if name == ("Qwen3-0.6B" if on_gpu else "tiny"):
                batches[0] = nano_vllm_requests(name, 2 if quick else 256, 16 if quick else 1024)
                rows.append(our_nano_vllm(name, folder, batches[0], {**options, "max_num_seqs": 256}))
            if not arguments.no_peer:
                theirs = transformers_rates(folder, batches, arguments.device)
                for row in rows:
                    if row["model"] == name:
                        row["transformers_tokens_per_second"] = round(theirs[row["batch"]], 1)
                        row["ratio"] = round(row["tokens_per_second"] / theirs[row["batch"]], 2)
        console.print(table(name, [row for row in rows if row["model"] == name]))
    if arguments.save:
        machine = describe("torch", "transformers", *(["triton"] if on_gpu else []))
        if on_gpu:
            machine["gpu"] = torch.cuda.get_device_name()
        report = {"machine": machine, "bandwidth_gb_per_second": round(bandwidth / 1e9), "rows": rows}
        arguments.save.write_text(json.dumps(report, indent=1) + "\n")


def copy_bandwidth(device: str, size: int) -> float:
    """Return bytes per second that copying `size` bytes reads and writes, the best of five."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size / best


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def saved(name: str, device: str) -> Iterator[Path]:
    """Save a random model for the length of the block, in memory where it fits."""
    family, shape = SHAPES[name]
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 40e9
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        save_random_model(Path(folder), family, shape, dtype=dtype, device=device)
        yield Path(folder)


def fixed_requests(name: str, size: int, prompt_tokens: int, new_tokens: int) -> Requests:
    """Return `size` requests of equal length."""
    generator, vocab = random.Random(size), SHAPES[name][1]["vocab_size"]
    return [([generator.randrange(3, vocab) for _ in range(prompt_tokens)], new_tokens) for _ in range(size)]


def nano_vllm_requests(name: str, size: int, longest: int) -> Requests:
    """Return nano-vllm's workload: lengths from 100 (or half of `longest`) to `longest` tokens."""
    generator, vocab = random.Random(0), SHAPES[name][1]["vocab_size"]
    shortest = min(100, longest // 2)
    return [
        (
            [generator.randrange(3, vocab) for _ in range(generator.randint(shortest, longest))],
            generator.randint(shortest, longest),
        )
        for _ in range(size)
    ]


def ours(
    name: str, folder: Path, batches: dict[int, Requests], bandwidth: float, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Measure the engine: whole runs, and its decode steps against the bandwidth floor."""
    engine = Engine(EngineConfig(model=str(folder), **options))
    rows = []
    for size, requests in batches.items():
        run(engine, requests, temperature=0.0)  # compiles kernels
        seconds, step_seconds = run(engine, requests, temperature=0.0)
        prompt, new = len(requests[0][0]), requests[0][1]
        floor = bytes_per_step(name, options, size, prompt + new // 2) / bandwidth
        rows.append(
            {
                "model": name,
                "batch": size,
                "tokens_per_second": round(size * new / seconds, 1),
                "step_ms": round(1e3 * step_seconds, 3),
                "floor_ms": round(1e3 * floor, 3),
                "floor_share": round(floor / step_seconds, 3),
            }
        )
    engine.close()
    del engine
    release()
    return rows


def our_nano_vllm(name: str, folder: Path, requests: Requests, options: dict[str, Any]) -> dict[str, Any]:
    """Measure the engine under nano-vllm's workload; its row has the batch size 0."""
    engine = Engine(EngineConfig(model=str(folder), **options))
    run(engine, requests[: len(requests) // 2], temperature=0.6)
    seconds, _ = run(engine, requests, temperature=0.6)
    engine.close()
    del engine
    release()
    made = sum(new for _, new in requests)
    return {"model": name, "batch": 0, "tokens_per_second": round(made / seconds, 1)}


def run(engine: Engine, requests: Requests, *, temperature: float) -> tuple[float, float]:
    """Return the seconds that all requests took, and the median of the steps that only decode all of them."""
    synchronize()
    start = time.perf_counter()
    for index, (prompt, new) in enumerate(requests):
        params = SamplingParams(temperature=temperature, max_tokens=new, ignore_eos=True)
        engine.add_request(Request(prompt_token_ids=prompt, params=params, request_id=str(index)))
    steps, made = [], 0
    while engine.has_unfinished():
        before = time.perf_counter()
        outputs = engine.step()
        new_tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        if new_tokens == len(requests) and made >= len(requests):
            steps.append(time.perf_counter() - before)
        made += new_tokens
    synchronize()
    seconds = time.perf_counter() - start
    assert made == sum(new for _, new in requests)
    return seconds, sorted(steps)[len(steps) // 2] if steps else float("nan")


def bytes_per_step(name: str, options: dict[str, Any], batch: int, context: int) -> int:
    """Return the bytes that a decode step must read: the weights, and each sequence's keys and values."""
    shape = SHAPES[name][1]
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    dim, kv_heads = shape.get("head_dim", hidden // heads), shape["num_key_value_heads"]
    attention = hidden * dim * (2 * heads + 2 * kv_heads)
    layers = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    width = 2 if options["device"] == "cuda" else 4
    bits = {"none": 8 * width, "int8": 8, "int4": 4}[options["quantization"]]
    kv = 2 * kv_heads * dim * shape["num_hidden_layers"] * width
    return layers * bits // 8 + shape["vocab_size"] * hidden * width + batch * context * kv


def transformers_rates(folder: Path, batches: dict[int, Requests], device: str) -> dict[int, float]:
    """Return tokens per second of transformers' continuous batching, by the keys of `batches`."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device).eval()
    rates = {}
    for size, requests in batches.items():
        sampling = {"do_sample": True, "temperature": 0.6} if size == 0 else {"do_sample": False}
        config = GenerationConfig(**sampling, eos_token_id=-1, pad_token_id=2, max_new_tokens=LONGEST)
        # The second run counts: the first one captures and compiles.
        rates[size] = [_transformers_rate(model, config, requests) for _ in range(2)][1]
    del model
    release()
    return rates


def _transformers_rate(model: Any, config: GenerationConfig, requests: Requests) -> float:
    with model.continuous_batching_context_manager(
        generation_config=config, block=True, timeout=5
    ) as manager:
        synchronize()
        start = time.perf_counter()
        for prompt, new in requests:
            manager.add_request(prompt, max_new_tokens=new, eos_token_id=-1)
        made = finished = 0
        while finished < len(requests):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                made += len(result.generated_tokens)
                finished += 1
            elif result is None and not manager.is_running():
                raise RuntimeError("transformers' continuous batching ended before its requests did")
        seconds = time.perf_counter() - start
    assert made == sum(new for _, new in requests)
    return made / seconds


def release() -> None:
    """Give the memory of deleted models back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def table(name: str, rows: list[dict[str, Any]]) -> Table:
    """Lay one model's figures out."""
    columns = {
        "batch": "batch",
        "tokens_per_second": "tok/s",
        "step_ms": "step, ms",
        "floor_ms": "floor, ms",
        "floor_share": "floor / step",
        "transformers_tokens_per_second": "transformers, tok/s",
        "ratio": "ratio",
    }
    result = Table(title=name)
    for heading in columns.values():
        result.add_column(heading, justify="right")
    for row in rows:
        cells = [str(row.get(key, "–")) for key in columns]
        result.add_row("nano-vllm's" if row["batch"] == 0 else cells[0], *cells[1:])
    return result


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
