"""Check what importing the package does and does not do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import myllm_engine


def run(code: str, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PATH": "", **env}, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_is_light_and_sets_the_wait_policy():
    code = (
        "import os, sys, myllm_engine; from myllm_engine import EngineConfig, Request, SamplingParams, ModelLoadError;"
        "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert run(code) == "PASSIVE False False"
    assert run(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE False False"


def test_a_missing_library_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import myllm_engine\n"
        "try: myllm_engine.LLM\n"
        "except ImportError as error: print(error)"
    )
    assert run(code) == (
        "`myllm_engine.LLM` needs the engine extra (`torch` is not installed): pip install 'myllm-suite[engine]'"
    )


def test_public_names_exist():
    for name in myllm_engine.__all__:
        assert getattr(myllm_engine, name).__name__ == name
    assert dir(myllm_engine) == sorted(myllm_engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = myllm_engine.nothing
