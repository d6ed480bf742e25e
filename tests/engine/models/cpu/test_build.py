"""Check how the native library comes to be: compiled once, whole, or not at all."""

from __future__ import annotations

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from myllm_engine.config import EngineConfig
from myllm_engine.engine import Engine
from myllm_engine.errors import ModelLoadError
from myllm_engine.models.cpu import build
from myllm_engine.models.cpu.library import Format, Source

from .conftest import tiny
from .test_linear import multiply, pack, random


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Forget the loaded library, and use an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.load_library.cache_clear()
    yield tmp_path / "myllm"
    build.load_library.cache_clear()


@pytest.fixture
def folder(tmp_path, tokenizer):
    path = tmp_path / "model"
    tiny("llama").save_pretrained(path)
    tokenizer._tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "false", "sh -c 'echo 1'"])
def test_without_a_working_compiler_models_run_on_torch(monkeypatch, fresh, folder, caplog, compiler):
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING):
        engine = Engine(EngineConfig(model=str(folder), device="cpu", max_model_len=64, max_num_seqs=2))
    assert engine._runner._native is None
    [record] = [record for record in caplog.records if record.name.endswith("cpu.build")]
    assert "could not be compiled" in record.message
    assert "\n" not in record.message
    assert list(fresh.glob("*")) == []
    with pytest.raises(
        ModelLoadError, match="`quantization` 'int8' .* is not possible on the CPU: it needs a C comp"
    ):
        Engine(EngineConfig(model=str(folder), device="cpu", quantization="int8", max_model_len=64))


def test_other_flags_are_another_library(monkeypatch, fresh, library):
    names = set()
    for flags in ("-O0", "-O0 -DANOTHER"):  # quick to compile
        monkeypatch.setenv("MYLLM_CPU_FLAGS", flags)
        path = build.build_library()
        assert path == build.build_library()
        names.add(path)
        made = path.stat().st_mtime_ns
        build.build_library()
        assert path.stat().st_mtime_ns == made
    assert len(names) == 2
    assert set(fresh.iterdir()) == names


def test_processes_that_compile_at_once_do_not_harm_each_other(fresh, library):
    script = "from myllm_engine.models.cpu.build import build_library; import ctypes; ctypes.CDLL(str(build_library()))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MYLLM_CPU_FLAGS": "-O0",
        "XDG_CACHE_HOME": str(fresh.parent),
    }
    processes = [subprocess.Popen([sys.executable, "-c", script], env=environment) for _ in range(3)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
    [path] = fresh.iterdir()
    assert ctypes.CDLL(str(path)).model_forward


REFUSED = """
import ctypes, os, sys
class Stack(ctypes.Structure):
    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))
system = ctypes.CDLL(None, use_errno=True)
memory = ctypes.create_string_buffer(4096)
assert system.sigaltstack(ctypes.byref(Stack(ctypes.addressof(memory), 0, 4096)), None) == 0
assert system.syscall(158, 0x1023, 18) == -1  # arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)

import numpy as np
from myllm_engine.models.cpu.library import native_library
sys.path.insert(0, os.environ["TESTS"])
from test_linear import multiply, pack, random
from myllm_engine.models.cpu.library import Format, Source
linear = pack(native_library(), random((40, 290)), Format.BF16, Source.FLOAT, 290)
np.save(sys.argv[1], multiply(native_library(), linear, random((33, 290), 1)))
"""


def test_where_the_system_refuses_matrix_tiles_vectors_compute(library, plain, tmp_path):
    """Linux gives no leave for the tiles' state while a thread's signal stack is too small to hold it."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "amx_bf16" not in cpu.read_text():
        pytest.skip("this CPU has no matrix tiles")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TESTS": str(Path(__file__).parent)}
    result = tmp_path / "result.npy"
    subprocess.run([sys.executable, "-c", REFUSED, str(result)], env=environment, check=True, timeout=200)
    weights, x = random((40, 290)), random((33, 290), 1)
    expected, tiled = (
        multiply(each, pack(each, weights, Format.BF16, Source.FLOAT, 290), x) for each in (plain, library)
    )
    assert (np.load(result) == expected).all()
    assert (tiled != expected).any()  # with tiles, the input is rounded


def test_a_damaged_file_is_compiled_anew(monkeypatch, fresh, library):
    monkeypatch.setenv("MYLLM_CPU_FLAGS", "-O0")
    path = build.build_library()
    path.write_bytes(b"not a library")
    assert build.load_library().model_forward
    assert [path] == list(fresh.iterdir())
    assert path.stat().st_size > 1000
