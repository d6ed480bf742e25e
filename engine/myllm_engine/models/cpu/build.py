"""Compile the native library on first use, for the very CPU that it will run on, and load it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-w")
_TIMEOUT = 300  # seconds; it takes five on an idle machine


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Return the library, compiled if need be; None, with one warning, where that is not possible.

    The result lies in `$XDG_CACHE_HOME/myllm` (default `~/.cache/myllm`), under a name that stands for the
    sources, the compiler and the CPU. Set `CC` for another compiler than `cc`, and
    `MYLLM_CPU_FLAGS` for other flags than `-march=native`; an empty cache is always safe.
    """
    try:
        try:
            return _load_or_remove(build_library())
        except OSError:  # a damaged file: once more
            return _load_or_remove(build_library())
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        logger.warning(
            "The CPU library could not be compiled, and models run on torch alone, several times slower: "
            "install a C compiler, or name one in `CC` (%s)",
            str(detail).strip().splitlines()[0] if str(detail).strip() else type(error).__name__,
        )
        return None


def _load_or_remove(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        path.unlink(missing_ok=True)
        raise


def build_library() -> Path:
    """Return the path of the compiled library.

    Raises:
        OSError: there is no compiler, or no folder to write to.
        subprocess.SubprocessError: it fails or takes minutes.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if not compiler or shutil.which(compiler[0]) is None:
        raise FileNotFoundError(f"there is no compiler {shlex.join(compiler)!r}")
    target = shlex.split(os.environ.get("MYLLM_CPU_FLAGS") or _native_flag())
    sources = sorted(_SOURCES.iterdir())
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=True
    ).stdout
    parts = [
        *(path.read_bytes() for path in sources),
        repr((compiler, version, target, _FLAGS, _cpu())).encode(),
    ]
    name = f"cpu-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:24]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "myllm"
    library = folder / name
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    # Each process writes a file of its own, and the last to be done gives it the name: never is a half
    # written one seen.
    handle, made = tempfile.mkstemp(prefix=f"{name}.", dir=folder)
    os.close(handle)
    try:
        command = [*compiler, *_FLAGS, *target, str(_SOURCES / "model.c"), "-o", made, "-lm"]
        subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
        Path(made).replace(library)
    finally:
        Path(made).unlink(missing_ok=True)
    return library


def _native_flag() -> str:
    return "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"


def _cpu() -> str:
    """Return what tells this CPU's instruction sets from another's that shares the cache folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    keys = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(keys)}))
