"""What all tests share: a quiet environment, and one real server with the bundled model."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

# Before any framework is imported: no network, no cache of the developer's, no proxy, no foreign server.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["DSPY_CACHEDIR"] = tempfile.mkdtemp(prefix="myllm-dspy-cache-")
os.environ["AUTOGEN_USE_DOCKER"] = "0"
for _name in list(os.environ):
    if _name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") or _name.startswith(
        ("MYLLM_", "OPENAI_")
    ):
        del os.environ[_name]

import pytest  # noqa: E402

import myllm  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[myllm.Server]:
    """`myllm serve smollm2` in a process of its own, on a free port, for the whole session."""
    with myllm.Server("smollm2") as running:
        yield running
