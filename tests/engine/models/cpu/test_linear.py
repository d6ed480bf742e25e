"""Check packing and products against numpy, on the same rounded numbers and on exact ones."""

from __future__ import annotations

from ctypes import byref

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from myllm_engine.models.cpu.library import Format, Linear, Source

SHAPES = [(16, 32), (40, 96), (203, 72), (64, 577)]
TOKENS = [1, 2, 3, 7, 9, 16, 17, 32, 33, 40, 70, 131]  # beyond 8, 16, 32 and 128 other kernels take over
KINDS = {
    Source.Q4_0: (gguf.GGMLQuantizationType.Q4_0, Format.Q4),
    Source.Q4_1: (gguf.GGMLQuantizationType.Q4_1, Format.Q4),
    Source.Q8_0: (gguf.GGMLQuantizationType.Q8_0, Format.Q8),
}


def pack(library, data, format, source, cols) -> Linear:
    linear = Linear(format=format, rows=len(data), cols=cols)
    assert library.linear_pack(byref(linear), np.ascontiguousarray(data).ctypes.data, source) == 0
    return linear


def rows_of(library, linear) -> np.ndarray:
    out = np.empty((linear.rows, linear.cols), np.float32)
    for row in range(linear.rows):
        library.linear_row(byref(linear), row, out[row].ctypes.data)
    return out


def multiply(library, linear, x) -> np.ndarray:
    out = np.empty((len(x), linear.rows), np.float32)
    assert (
        library.linear_multiply(byref(linear), np.ascontiguousarray(x).ctypes.data, len(x), out.ctypes.data)
        == 0
    )
    return out


def rounded(x: np.ndarray) -> np.ndarray:
    """Round each 32 values to 16 bits: the largest to 127 * 256, whose halves are both signed bytes.

    Half-way values may go either way, as the library divides in float32: results differ by a code at most.
    """
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, -x.shape[1] % 32))).reshape(len(x), -1, 32)
    scale = np.abs(padded).max(axis=-1, keepdims=True) / (127 * 256)
    codes = np.rint(padded / np.where(scale > 0, scale, 1))
    return (codes * scale).reshape(len(x), -1)[:, : x.shape[1]]


def random(shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("rows", "cols"), [(16, 32), (40, 96), (203, 576)])
@pytest.mark.parametrize("source", KINDS)
def test_gguf_blocks_are_kept_as_they_are(library, source, rows, cols):
    kind, format = KINDS[source]
    blocks = quantize(random((rows, cols)), kind)
    linear = pack(library, blocks, format, source, cols)
    exact = dequantize(blocks, kind)
    np.testing.assert_allclose(rows_of(library, linear), exact, rtol=1e-6, atol=1e-6)
    for tokens in TOKENS:
        x = random((tokens, cols), tokens)
        expected = rounded(x) @ exact.astype(np.float64).T
        np.testing.assert_allclose(multiply(library, linear, x), expected, rtol=1e-5, atol=8e-4)
    library.linear_free(byref(linear))


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("format", Format)
def test_floats_are_packed_within_the_formats_error(library, format, rows, cols):
    weights = random((rows, cols))
    linear = pack(library, weights, format, Source.FLOAT, cols)
    read = rows_of(library, linear)
    padded = np.pad(weights, ((0, 0), (0, -cols % 32))).reshape(rows, -1, 32)
    step = {
        Format.F32: 0 * padded,
        Format.BF16: np.abs(padded) * 2.0**-7,
        Format.Q8: np.abs(padded).max(-1, keepdims=True) / 127,
        Format.Q4: (padded.max(-1, keepdims=True) - padded.min(-1, keepdims=True)) / 15,
    }[format]
    # Half a step, and what the half-precision scale adds at the far end of the block.
    allowed = np.broadcast_to(step * 0.5 * 1.02 + np.abs(padded) * 2e-3 * (format >= Format.Q8), padded.shape)
    assert (np.abs(read - weights) <= allowed.reshape(rows, -1)[:, :cols] + 1e-7).all()
    x = random((21, cols), 1)
    used = rounded(x) if format >= Format.Q8 else x.astype(np.float64)
    np.testing.assert_allclose(
        multiply(library, linear, x), used @ read.astype(np.float64).T, rtol=1e-5, atol=8e-4
    )
    library.linear_free(byref(linear))


@pytest.mark.parametrize("tokens", [1, 5, 16, 40])
@pytest.mark.parametrize("format", [Format.BF16, Format.Q8, Format.Q4])
def test_rounding_the_input_costs_nearly_nothing(library, format, tokens):
    """Against the input unrounded; 8 bits would give 5e-3."""
    linear = pack(library, random((64, 576)), format, Source.FLOAT, 576)
    x = random((tokens, 576), 1)
    exact = x.astype(np.float64) @ rows_of(library, linear).astype(np.float64).T
    error = np.linalg.norm(multiply(library, linear, x) - exact) / np.linalg.norm(exact)
    assert error < 4e-5
    library.linear_free(byref(linear))


@pytest.mark.parametrize("format", Format)
def test_a_tokens_result_does_not_depend_on_the_batch(library, format):
    linear = pack(library, random((48, 160)), format, Source.FLOAT, 160)
    x = random((140, 160), 1)
    alone = np.concatenate([multiply(library, linear, row[None]) for row in x])
    for tokens in (5, 16, 32, 40, 140):
        assert (multiply(library, linear, x[:tokens]) == alone[:tokens]).all()
    library.linear_free(byref(linear))


@pytest.mark.parametrize("format", [Format.Q8, Format.Q4])
def test_products_at_the_edges_of_the_integers(library, format):
    weights = np.where(np.arange(16 * 64).reshape(16, 64) % 3 == 0, -1.0, 1.0).astype(np.float32)
    linear = pack(library, weights, format, Source.FLOAT, 64)
    exact = rows_of(library, linear).astype(np.float64)
    for x in (
        np.full((37, 64), 1e4),
        np.full((37, 64), -1e4),
        np.full((37, 64), 1e30),
        np.zeros((17, 64)),
        1e4 * np.sign(weights[:1]),
    ):
        result = multiply(library, linear, x.astype(np.float32))
        np.testing.assert_allclose(result, x @ exact.T, rtol=1e-6, atol=1e-6 * 64 * np.abs(x).max())
    library.linear_free(byref(linear))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("size", [1e-30, 1e-36, 1e-44])
def test_tiny_inputs_give_tiny_numbers(library, format, size):
    linear = pack(library, random((16, 64)), format, Source.FLOAT, 64)
    x = (random((37, 64), 1) * size).astype(np.float32)
    exact = x @ rows_of(library, linear).astype(np.float64).T
    np.testing.assert_allclose(multiply(library, linear, x), exact, rtol=0, atol=1e-3 * 1e-30 + 1e-3 * size)
    library.linear_free(byref(linear))


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize(("rows", "cols"), [(16, 32), (72, 290)])
def test_every_number_of_tokens(library, format, rows, cols):
    linear = pack(library, random((rows, cols)), format, Source.FLOAT, cols)
    read = rows_of(library, linear).astype(np.float64)
    x = random((70, cols), 1)
    used = rounded(x) if format >= Format.Q8 else x.astype(np.float64)
    for tokens in range(1, 71):
        result = multiply(library, linear, x[:tokens])
        np.testing.assert_allclose(result, used[:tokens] @ read.T, rtol=1e-5, atol=8e-4)
    library.linear_free(byref(linear))


@pytest.mark.parametrize("format", Format)
def test_without_matrix_tiles_results_are_the_same(library, plain, format):
    """To the bit where codes are multiplied; dense weights differ by the rounding of the input."""
    weights, x = random((40, 290)), random((140, 290), 1)
    linear, other = (pack(each, weights, format, Source.FLOAT, 290) for each in (library, plain))
    for tokens in (1, 7, 16, 40, 140):
        ours, theirs = multiply(library, linear, x[:tokens]), multiply(plain, other, x[:tokens])
        if format is Format.BF16:
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=8e-4)
        else:
            assert (ours == theirs).all()
    library.linear_free(byref(linear))
    plain.linear_free(byref(other))
