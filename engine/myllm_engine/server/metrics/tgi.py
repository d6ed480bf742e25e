"""Name what was counted as TGI does (router/src/server.rs, backends/v3/src/backend.rs).

Its phases of a step (forward, decode, filter, concat) are one here: `tgi_batch_inference_duration`. There is
no batch that waits, either: `tgi_batch_next_size` counts the sequences of whose prompts a step reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from ...async_engine import AsyncEngine
from ..traffic import Traffic
from .families import Labels, bare_counter, gauge, histogram
from .recorder import Recorder

# TGI's words; what it does not tell apart keeps ours.
_ERRORS = {
    "invalid": "validation",
    "too_large": "validation",
    "engine_dead": "generation",
    "internal": "generation",
}


def families(engine: AsyncEngine, recorder: Recorder, traffic: Traffic, labels: Labels) -> Iterator[Metric]:
    """Yield TGI's metrics."""
    stats, steps = engine.stats(), engine.steps
    held = stats.kv_pages_total - stats.kv_pages_free
    yield bare_counter("tgi_request_count", "Requests received.", traffic.received, labels)
    yield bare_counter("tgi_request_success", "Requests answered.", traffic.succeeded, labels)
    failed = dict.fromkeys(("validation", "overloaded", "generation", "dropped"), 0)
    for kind, count in traffic.failed.items():
        error = _ERRORS.get(kind, kind)
        failed[error] = failed.get(error, 0) + count
    yield bare_counter("tgi_request_failure", "Requests refused or failed.", failed, labels, by="err")
    for name, help, values in (
        ("input_length", "Tokens of a prompt.", recorder.tgi_input_length),
        ("max_new_tokens", "The limit asked for.", recorder.tgi_max_new_tokens),
        ("generated_tokens", "Tokens generated.", recorder.tgi_generated_tokens),
        ("duration", "From the request to its end, in seconds.", recorder.tgi_duration),
        ("validation_duration", "Until the engine has it, in seconds.", recorder.tgi_validation),
        ("queue_duration", "Until the prompt is begun, in seconds.", recorder.tgi_queue),
        ("inference_duration", "From there to the end, in seconds.", recorder.tgi_inference),
        ("mean_time_per_token_duration", "That by token, in seconds.", recorder.tgi_per_token),
        ("skipped_tokens", "Tokens of a completion in a step, beyond the first.", recorder.skipped),
    ):
        yield histogram(f"tgi_request_{name}", help, values, labels)
    yield gauge("tgi_queue_size", "Sequences that wait.", stats.num_waiting, labels)
    yield gauge("tgi_batch_current_size", "Sequences that are computed.", stats.num_running, labels)
    yield gauge(
        "tgi_batch_current_max_tokens",
        "Tokens that they have room for.",
        held * engine.config.page_size,
        labels,
    )
    yield histogram("tgi_batch_next_size", "Sequences of whose prompts a step reads.", steps.prompts, labels)
    seconds = {"prefill": steps.prefill_seconds, "decode": steps.decode_seconds}
    counts = {method: sum(each.counts) for method, each in seconds.items()}
    yield bare_counter("tgi_batch_inference_count", "Steps begun.", counts, labels, by="method")
    yield bare_counter("tgi_batch_inference_success", "Steps done.", counts, labels, by="method")
    yield histogram("tgi_batch_inference_duration", "Time of a step, in seconds.", seconds, labels)
