"""Read GGUF files: metadata, and the reading that transformers does, without its detours.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ModelLoadError

# GGUF's value types with their struct formats; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file by key, arrays as lists.

    Raises:
        ModelLoadError: the file is not a GGUF file of version 2 or 3, or is cut off.
    """
    return _read(path)[0]


def check_complete(path: Path) -> None:
    """Check that the file holds all of the tensors that it lists.

    Raises:
        ModelLoadError: see `read_metadata`; or the file ends before the data of its tensors does.
    """
    needed = _read(path)[1]
    size = path.stat().st_size
    if size < needed:
        raise ModelLoadError(
            f"The GGUF file {str(path)!r} is cut off: it has {size} bytes, and its tensors reach to "
            f"{needed}: download it again"
        )


def _read(path: Path) -> tuple[dict[str, Any], int]:
    """Return the metadata, and the size that the file must have at least."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelLoadError(f"{str(path)!r} is not a GGUF file: it does not begin with 'GGUF'")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data, path)
            except struct.error as error:
                raise ModelLoadError(
                    f"The GGUF file {str(path)!r} is cut off within its metadata: download it again"
                ) from error


def _parse(data: mmap.mmap, path: Path) -> tuple[dict[str, Any], int]:
    version, num_tensors, count = struct.unpack_from("<IQQ", data, 4)
    if version not in (2, 3):
        raise ModelLoadError(f"{str(path)!r} is GGUF version {version}; versions 2 and 3 can be read")
    metadata: dict[str, Any] = {}
    offset = 24
    for _ in range(count):
        key, offset = _read_string(data, offset)
        (kind,) = struct.unpack_from("<I", data, offset)
        metadata[key], offset = _read_value(data, offset + 4, kind)
    end = 0
    for _ in range(num_tensors):
        _, offset = _read_string(data, offset)
        (dimensions,) = struct.unpack_from("<I", data, offset)
        *shape, kind, start = struct.unpack_from(f"<{dimensions}QIQ", data, offset + 4)
        offset += 4 + 8 * dimensions + 12
        end = max(end, start + _tensor_bytes(math.prod(shape), kind))
    alignment = metadata.get("general.alignment", 32)
    return metadata, -(-offset // alignment) * alignment + end


def _tensor_bytes(count: int, kind: int) -> int:
    """Return the size of a tensor; 0 for a type that the `gguf` package does not know, or without it."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        return 0
    if kind not in GGMLQuantizationType.__members__.values():
        return 0
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return count // block * size


def _read_string(data: mmap.mmap, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, offset)
    end = offset + 8 + length
    # Keys and tokens are UTF-8 by the format, but a token may be a piece of a character in files found in the
    # wild.
    return data[offset + 8 : end].decode("utf-8", errors="replace"), end


def _read_value(data: mmap.mmap, offset: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _read_string(data, offset)
    if kind == _ARRAY:
        item_kind, length = struct.unpack_from("<IQ", data, offset)
        offset += 12
        if item_kind in _SCALARS:
            form = f"<{length}{_SCALARS[item_kind]}"
            return list(struct.unpack_from(form, data, offset)), offset + struct.calcsize(form)
        items = []
        for _ in range(length):
            item, offset = _read_value(data, offset, item_kind)
            items.append(item)
        return items, offset
    form = "<" + _SCALARS[kind]
    return struct.unpack_from(form, data, offset)[0], offset + struct.calcsize(form)


@contextmanager
def fast_gguf_reading() -> Iterator[None]:
    """Speed up what transformers does with the `gguf` package, inside the block.

    transformers reads the whole vocabulary through numpy's memory map, string by string, each time it opens
    the file, and builds the table of tensor names anew for each submodule: 7 of the 10 seconds that a 135M
    model takes. Inside the block it gets a reader that skips the text of string arrays (nothing but their
    length is used for config and weights), and a table that is built once. Where a version no longer uses
    these names, it is only slower.
    """
    import gguf

    class LeanReader(gguf.GGUFReader):
        """A reader whose string arrays have the right length and no text."""

        def _get(self, offset: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = np.asarray(self.data).view(np.ndarray)  # slicing a memmap costs ten times as much
            return super()._get(offset, *args, **kwargs)

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            kind = gguf.GGUFValueType(raw_type)
            if kind != gguf.GGUFValueType.ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            item_kind, length = struct.unpack_from("<IQ", self.data, orig_offs)
            types = [kind, gguf.GGUFValueType(item_kind)]
            if length == 0 or self.byte_order != "I" or item_kind == _ARRAY:
                return super()._get_field_parts(orig_offs, raw_type)
            header = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
            offset = orig_offs + 12
            if item_kind == _STRING:
                for _ in range(length):
                    offset += 8 + struct.unpack_from("<Q", self.data, offset)[0]
                return offset - orig_offs, [*header, np.zeros(0, np.uint8)], [2] * length, types
            values = self._get(offset, self.gguf_scalar_to_np[types[1]], length)
            parts = [*header, *values.reshape(-1, 1)]
            return offset + values.nbytes - orig_offs, parts, list(range(2, 2 + length)), types

    originals = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = LeanReader  # type: ignore[misc]
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = originals  # type: ignore[misc]
