"""Mirror the structures of `native/model.c` and declare its functions."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_double, c_float, c_int, c_int32, c_void_p
from enum import IntEnum

from .build import load_library


class Format(IntEnum):
    """Name how a linear's weights lie in memory; see `native/linear.h`."""

    F32 = 0
    BF16 = 1
    Q8 = 2
    Q4 = 3


class Source(IntEnum):
    """Name what weights are packed from: float32, or GGUF's blocks."""

    FLOAT = 0
    Q4_0 = 1
    Q4_1 = 2
    Q8_0 = 3


class Linear(Structure):
    """`struct Linear`."""

    _fields_ = (
        ("format", c_int32),
        ("rows", c_int32),
        ("cols", c_int32),
        ("reserved", c_int32),
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
    )


class Layer(Structure):
    """`struct Layer`."""

    _fields_ = (
        *((name, Linear) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm", "keys", "values")),
        ("window", c_int32),
        ("reserved", c_int32),
    )


class Config(Structure):
    """`struct Config`."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                "num_layers",
                "hidden",
                "intermediate",
                "heads",
                "kv_heads",
                "head_dim",
                "page_size",
                "kv_is_bf16",
                "max_tokens",
                "num_threads",
            )
        ),
        ("eps", c_float),
        ("scale", c_float),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("norm", c_void_p),
        ("embed", Linear),
        ("head", Linear),
        ("layers", POINTER(Layer)),
    )


class Step(Structure):
    """`struct Step`."""

    _fields_ = (
        *((name, c_int32) for name in ("num_tokens", "num_sequences", "num_rows", "num_hidden")),
        *(
            (name, c_void_p)
            for name in (
                "input_ids",
                "positions",
                "slots",
                "query_lens",
                "pages",
                "page_starts",
                "rows",
                "logits",
                "hidden",
            )
        ),
    )


def native_library() -> ctypes.CDLL | None:
    """Return the library with its functions declared; None where it cannot be compiled."""
    library = load_library()
    if library is None or getattr(library, "is_declared", False):
        return library
    declare(library)
    library.is_declared = True
    return library


def declare(library: ctypes.CDLL) -> None:
    """Say what the library's functions take and return.

    Raises:
        RuntimeError: its structures are not those of this module.
    """
    for name, result, arguments in (
        ("model_sizes", None, [POINTER(c_int32)]),
        ("model_create", c_void_p, [POINTER(Config)]),
        ("model_destroy", None, [c_void_p]),
        ("model_forward", None, [c_void_p, POINTER(Step)]),
        ("model_seconds", None, [c_void_p, POINTER(c_double)]),
        ("linear_pack", c_int, [POINTER(Linear), c_void_p, c_int]),
        ("linear_free", None, [POINTER(Linear)]),
        ("linear_row", None, [POINTER(Linear), c_int, c_void_p]),
        ("linear_multiply", c_int, [POINTER(Linear), c_void_p, c_int, c_void_p]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    sizes = (c_int32 * 4)()
    library.model_sizes(sizes)
    expected = [ctypes.sizeof(kind) for kind in (Linear, Layer, Config, Step)]
    if list(sizes) != expected:
        raise RuntimeError(f"The CPU library's structures are {list(sizes)} bytes, and Python's {expected}")
