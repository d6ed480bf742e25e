"""Count what an engine holds and has done. Imports no torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

# Boundaries of vLLM's histogram of the same purpose (vllm/v1/metrics/buckets.py).
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_STEP_PROMPTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# A geometric sequence from 150 microseconds to 145 seconds, as TGI's durations (router/src/server.rs).
DURATIONS = tuple(0.0001 * 1.5**power for power in range(1, 36))


class Histogram:
    """Count values by size, and sum them up; written by one thread, read by any.

    Args:
        bounds: upper bounds of the buckets, ascending and inclusive; another one takes what is above.

    Attributes:
        bounds: as given.
        counts: values in each bucket, one more than there are bounds.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class StepStats:
    """Count the steps of an engine since it started.

    Attributes:
        tokens: tokens that a step computed, of prompts and completions together.
        prompts: sequences of whose prompts a step read, where it read of any.
        prefill_seconds: time of the steps that read from prompts, whatever else they did.
        decode_seconds: time of the other ones.
    """

    tokens: Histogram = field(default_factory=lambda: Histogram(_STEP_TOKENS))
    prompts: Histogram = field(default_factory=lambda: Histogram(_STEP_PROMPTS))
    prefill_seconds: Histogram = field(default_factory=lambda: Histogram(DURATIONS))
    decode_seconds: Histogram = field(default_factory=lambda: Histogram(DURATIONS))


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Count what the engine holds at one moment, and what it has done since it started.

    Attributes:
        num_running: sequences that hold pages.
        num_waiting: sequences that wait for pages or for their turn.
        kv_pages_total: pages of the KV cache, the reserved one left out.
        kv_pages_free: those that no sequence holds; they may hold cached prefixes.
        num_preemptions: times that a running sequence had to give up its pages.
        prefix_queried_tokens_total: prompt tokens that were looked up in the prefix cache.
        prefix_cached_tokens_total: those that were found.
        draft_tokens_total: tokens that speculation proposed.
        accepted_tokens_total: those that were right.
        prompt_tokens_total: prompt tokens of the requests accepted.
        generation_tokens_total: tokens generated.
    """

    num_running: int
    num_waiting: int
    kv_pages_total: int
    kv_pages_free: int
    num_preemptions: int
    prefix_queried_tokens_total: int
    prefix_cached_tokens_total: int
    draft_tokens_total: int
    accepted_tokens_total: int
    prompt_tokens_total: int
    generation_tokens_total: int
