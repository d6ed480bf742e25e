"""Let huggingface_hub's clients reach the servers under test."""

from __future__ import annotations

from collections.abc import Iterator

import huggingface_hub.constants
import pytest
from huggingface_hub import InferenceClient


@pytest.fixture(scope="module", autouse=True)
def online() -> Iterator[None]:
    """Let huggingface_hub reach the loopback server: offline, it refuses any address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield


@pytest.fixture(scope="module")
def client(live) -> InferenceClient:
    """Return huggingface_hub's client of the server with the bundled model, in TGI's dialect."""
    return InferenceClient(model=live.url, timeout=60, provider="hf-inference")
