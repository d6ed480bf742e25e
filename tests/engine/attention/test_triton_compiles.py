"""Check that the kernels compile for GPUs that are not here: the interpreter takes more than the compiler does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

# In a process of its own: this one may have the interpreter on.
PROGRAM = """
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from myllm_engine.attention import triton_kernels as attention
from myllm_engine.models import quantize_kernel


def compile(kernel, pointers, constants, *, warps):
    signature = {name: "i32" for name in kernel.arg_names}
    signature |= {"scale": "fp32", "softcap": "fp32"} | {name: f"*{kind}" for name, kind in pointers.items()}
    signature = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    options = {"num_warps": warps, "num_stages": 2}
    binary = triton.compile(ASTSource(kernel, signature, values), target=target, options=options)
    assert binary.asm["cubin"]
    assert binary.metadata.shared < 160 << 10, binary.metadata.shared  # of the 164 KiB of an A100


tables = {"tables": "i32", "slopes": "fp32", "partial": "fp32", "partial_log": "fp32"}
for decode, splits, key_dim, value_dim, group, window in (
    (True, 8, 128, 128, 4, 0),
    (False, 1, 192, 128, 1, 512),
    (False, 4, 80, 80, 7, 0),
):
    rows = 16 if decode else 64
    compile(
        attention.attend_kernel,
        dict.fromkeys(("query", "keys", "values", "sinks", "output"), "bf16") | tables,
        {
            "NUM_HEADS": 8 * group, "GROUP": group, "KEY_DIM": key_dim, "VALUE_DIM": value_dim,
            "PAGE_SIZE": 16, "WINDOW": window, "SOFTCAP": group == 7, "SINKS": group == 4,
            "ALIBI": group == 7, "DECODE": decode, "SPLITS": splits,
            "BLOCK_TOKENS": 1 if decode else rows // group, "BLOCK_ROWS": rows,
            "BLOCK_KEYS": 32 if key_dim > 128 else 64, "BLOCK_KEY_DIM": triton.next_power_of_2(key_dim),
            "BLOCK_VALUE_DIM": triton.next_power_of_2(value_dim),
        },
        warps=4 if decode else 8,
    )
compile(
    attention.combine_kernel,
    {"partial": "fp32", "partial_log": "fp32", "output": "bf16"},
    {"VALUE_DIM": 80, "BLOCK_VALUE_DIM": 128, "SPLITS": 8},
    warps=2,
)
compile(
    attention.store_kernel,
    {"slots": "i64"} | dict.fromkeys(("key", "value", "keys", "values"), "bf16"),
    {"KEY_DIM": 192, "VALUE_DIM": 128, "BLOCK": 256},
    warps=1,
)
for bits, kind in ((8, "i8"), (4, "u8")):
    compile(
        quantize_kernel.low_bit_kernel,
        {"inputs": "bf16", "weight": kind, "scales": "fp32", "zeros": "fp32", "bias": "bf16", "output": "bf16"},
        {"N": 4096, "K": 4096, "BITS": bits, "BIAS": True, "BLOCK_M": 16, "BLOCK_N": 16, "GROUP": 64},
        warps=4,
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_for(capability, tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, capability],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
