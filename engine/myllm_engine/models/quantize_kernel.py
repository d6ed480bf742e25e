"""Define the Triton kernel that multiplies by low-bit weights, which it reads as they are stored."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def low_bit_kernel(
    inputs, weight, scales, zeros, bias, output, num_rows, input_row,
    N: tl.constexpr, K: tl.constexpr, BITS: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Compute `inputs @ dequantised(weight).T + bias`; grid (blocks of N, blocks of rows).

    A block of the sum over K is one group, whose scale and zero are applied to the sum and not to each
    weight: `sum x * (q * scale + zero) = scale * sum(x * q) + zero * sum(x)`. See `QuantizedLinear` for the
    layouts.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_group = tl.arange(0, GROUP)
    column_mask = columns < N
    row_mask = rows < num_rows
    x_at = inputs + rows[:, None].to(tl.int64) * input_row + in_group[None, :]
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    GROUPS: tl.constexpr = K // GROUP
    if BITS == 8:
        w_at = weight + columns[None, :].to(tl.int64) * K + in_group[:, None]
        for group in range(GROUPS):
            x = tl.load(x_at + group * GROUP, mask=row_mask[:, None], other=0.0)
            w = tl.load(w_at + group * GROUP, mask=column_mask[None, :], other=0).to(x.dtype)
            scale = tl.load(scales + group * N + columns, mask=column_mask, other=0.0)
            total += tl.dot(x, w, input_precision="ieee") * scale[None, :]
    else:
        w_at = weight + columns[None, :].to(tl.int64) * (K // 2) + in_group[:, None]
        for group in range(GROUPS // 2):
            packed = tl.load(w_at + group * GROUP, mask=column_mask[None, :], other=0)
            for half in tl.static_range(2):
                place = group + half * (GROUPS // 2)
                x = tl.load(x_at + place * GROUP, mask=row_mask[:, None], other=0.0)
                w = ((packed >> (4 * half)) & 0xF).to(x.dtype)
                scale = tl.load(scales + place * N + columns, mask=column_mask, other=0.0)
                zero = tl.load(zeros + place * N + columns, mask=column_mask, other=0.0)
                total += tl.dot(x, w, input_precision="ieee") * scale[None, :]
                total += tl.sum(x.to(tl.float32), 1)[:, None] * zero[None, :]
    if BIAS:
        total += tl.load(bias + columns, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(
        output + rows[:, None].to(tl.int64) * N + columns[None, :],
        total.to(output.dtype.element_ty),
        mask=row_mask[:, None] & column_mask[None, :],
    )
