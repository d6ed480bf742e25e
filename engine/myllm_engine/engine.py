"""Run requests: the step loop (`Engine`) and its asynchronous front (`AsyncEngine`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from .config import EngineConfig
from .request import Request, RequestOutput
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Count what the engine holds at one moment, and what it has done since it started."""

    num_running: int
    num_waiting: int
    kv_pages_total: int
    kv_pages_free: int
    num_preemptions: int
    prompt_tokens_total: int
    generation_tokens_total: int


class Engine:
    """Run requests step by step, in the caller's thread."""

    def __init__(self, config: EngineConfig) -> None:
        raise NotImplementedError

    def add_request(self, request: Request) -> None:
        """Queue a request."""
        raise NotImplementedError

    def abort(self, request_id: str) -> None:
        """End a request; its pages are free afterwards."""
        raise NotImplementedError

    def step(self) -> list[RequestOutput]:
        """Run the model once."""
        raise NotImplementedError

    def has_unfinished(self) -> bool:
        """Tell whether a step would do something."""
        raise NotImplementedError


class AsyncEngine:
    """Run an `Engine` in a thread of its own and hand its outputs to event loops."""

    config: EngineConfig
    tokenizer: Tokenizer
    model_name: str
    max_model_len: int
    vocab_size: int
    device: str
    dtype: str

    def __init__(self, config: EngineConfig) -> None:
        raise NotImplementedError

    @property
    def error(self) -> BaseException | None:
        """Return what ended the step loop; None while healthy."""
        raise NotImplementedError

    def validate(self, request: Request) -> None:
        """Raise InvalidRequestError or ContextLengthError for a request that cannot run."""
        raise NotImplementedError

    def submit(self, request: Request) -> AsyncIterator[RequestOutput]:
        """Queue a request and iterate over its outputs."""
        raise NotImplementedError

    def stats(self) -> EngineStats:
        """Return the counters of this moment."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop the thread; unfinished requests fail with EngineDeadError."""
        raise NotImplementedError
