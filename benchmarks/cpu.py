"""Take a decode step on the CPU apart, on the bundled model: where the milliseconds go.

    python -m benchmarks.cpu [--batch-sizes 1 8 32] [--context 256] [--dtype auto] [--quantization auto]

A step is measured inside the engine (`Engine.step`), with all sequences at about the same context; what the
native library does not spend itself is Python: scheduling, the batch's tables, sampling, detokenization. The
median over the steps counts. Prefill is the time until all have their first token, by prompt. On a shared
machine figures of different runs cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from myllm_engine import Engine, EngineConfig, SamplingParams

# isort: split
# The engine goes first: it sets OpenMP's wait policy, which torch reads when it is loaded.
import torch
from rich.console import Console
from rich.table import Table

from myllm_engine.models.cpu.model import NativeModel
from myllm_engine.request import Request

STEPS = 40


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=256, help="tokens before the first measured step")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quantization", default="auto")
    parser.add_argument(
        "--json", action="store_true", help="print milliseconds by batch size and part instead"
    )
    arguments = parser.parse_args()
    console = Console()
    engine = Engine(
        EngineConfig(
            model=arguments.model,
            device="cpu",
            dtype=arguments.dtype,
            quantization=arguments.quantization,
            enable_prefix_caching=False,
            max_num_seqs=max(arguments.batch_sizes),
        )
    )
    native = engine._runner._native
    if native is None:
        raise SystemExit("The model runs on torch here (see the log): there is nothing to take apart")
    table = Table(title=f"A step at context {arguments.context}, {torch.get_num_threads()} threads, ms")
    for heading in ("batch", "linears", "attention", "other", "Python", "whole", "tokens/s", "prefill, s"):
        table.add_column(heading, justify="right")
    measured = {size: _measure(engine, native, size, arguments.context) for size in arguments.batch_sizes}
    if arguments.json:
        print(
            json.dumps(
                {
                    size: {name: round(1e3 * value, 3) for name, value in parts.items()}
                    for size, (_, parts) in measured.items()
                }
            )
        )
        return
    for size, (prefill, parts) in measured.items():
        whole = sum(parts.values())
        cells = [*(f"{1e3 * value:.2f}" for value in parts.values()), f"{1e3 * whole:.2f}"]
        table.add_row(str(size), *cells, f"{size / whole:.0f}", f"{prefill:.3f}")
    console.print(table)


def _measure(engine: Engine, native: NativeModel, size: int, context: int) -> tuple[float, dict[str, float]]:
    """Return the seconds to read one prompt, and those of a decode step by what they are spent on."""
    generator = random.Random(size)
    # Those read first go on while the others are read; all must still run when the last step is measured.
    params = SamplingParams(temperature=0.0, max_tokens=STEPS + size * context // 64 + 8, ignore_eos=True)
    started = time.perf_counter()
    waiting: set[str] = set()
    for _ in range(size):
        prompt = [generator.randrange(100, engine.vocab_size) for _ in range(context)]
        request = Request(prompt_token_ids=prompt, params=params)
        engine.add_request(request)
        waiting.add(request.request_id)
    requests = list(waiting)
    while waiting:
        waiting -= {output.request_id for output in engine.step()}
    prefill = (time.perf_counter() - started) / size
    rows: list[dict[str, float]] = []
    native.seconds()
    for _ in range(STEPS):
        start = time.perf_counter()
        engine.step()
        whole = time.perf_counter() - start
        parts = native.seconds()
        rows.append({**parts, "Python": whole - sum(parts.values())})
    for request_id in requests:
        engine.abort(request_id)
    return prefill, {name: statistics.median(row[name] for row in rows) for name in rows[0]}


if __name__ == "__main__":
    main()
