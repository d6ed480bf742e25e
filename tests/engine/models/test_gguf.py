"""Check our reading of GGUF files against the `gguf` package's own."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from myllm_engine.errors import ModelLoadError
from myllm_engine.models.gguf import fast_gguf_reading, read_metadata
from myllm_engine.models.source import resolve_model


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_model("smollm2").gguf_path


@pytest.fixture(scope="module")
def reader(path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(path)


def test_metadata_equals_the_gguf_packages(path, reader):
    ours = read_metadata(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert ours == theirs


def test_the_lean_reader_agrees_but_for_the_text_of_arrays(path, reader):
    with fast_gguf_reading():
        lean = gguf.GGUFReader(path)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(
            gguf.MODEL_ARCH.LLAMA, 2
        )
    assert list(lean.fields) == list(reader.fields)
    for key, field in reader.fields.items():
        assert len(lean.fields[key].data) == len(field.data)
        assert lean.fields[key].types == field.types
        if field.types[-1] != gguf.GGUFValueType.STRING or len(field.types) == 1:
            assert lean.fields[key].contents() == field.contents(), key
    assert len(lean.tensors) == len(reader.tensors)
    for ours, theirs in zip(lean.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.tensor_type, ours.data_offset) == (
            theirs.name,
            theirs.tensor_type,
            theirs.data_offset,
        )
        assert (ours.data == theirs.data).all()


def test_the_gguf_package_is_left_as_it_was():
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(RuntimeError), fast_gguf_reading():
        raise RuntimeError
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_other_files_are_refused(tmp_path: Path):
    file = tmp_path / "x.gguf"
    file.write_bytes(b"PK\x03\x04" * 10)
    with pytest.raises(ModelLoadError, match="is not a GGUF file"):
        read_metadata(file)
    file.write_bytes(b"GGUF\x09\x00\x00\x00" + bytes(16))
    with pytest.raises(ModelLoadError, match="GGUF version 9"):
        read_metadata(file)
