"""Count what an engine holds and has done. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


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
