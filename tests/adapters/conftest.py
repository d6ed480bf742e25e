"""The faults and the wire of the client's tests, for the adapters' tests too."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Test folders are no packages, and pytest knows the fixtures of parent folders only.
_NAME = "myllm_tests_wire"
if _NAME not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        _NAME, Path(__file__).parent.parent / "clients" / "conftest.py"
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_NAME] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_NAME])

wire = sys.modules[_NAME].wire
free_port = sys.modules[_NAME].free_port
black_hole = sys.modules[_NAME].black_hole
