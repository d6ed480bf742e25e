"""Name what was counted as vLLM does (vllm/v1/metrics/loggers.py)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client.core import Metric

from ...async_engine import AsyncEngine
from .families import Labels, counter, gauge, histogram
from .recorder import Recorder


def families(engine: AsyncEngine, recorder: Recorder, labels: Labels) -> Iterator[Metric]:
    """Yield vLLM's metrics."""
    stats, config = engine.stats(), engine.config
    held = stats.kv_pages_total - stats.kv_pages_free
    yield gauge("vllm:num_requests_running", "Sequences that are computed.", stats.num_running, labels)
    yield gauge("vllm:num_requests_waiting", "Sequences that wait for room.", stats.num_waiting, labels)
    yield gauge(
        "vllm:kv_cache_usage_perc",
        "Share of the KV cache in use, 1 for all.",
        held / stats.kv_pages_total,
        labels,
    )
    settings = {
        "block_size": str(config.page_size),
        "enable_prefix_caching": str(config.enable_prefix_caching),
        "gpu_memory_utilization": str(config.gpu_memory_utilization),
        "num_gpu_blocks": str(stats.kv_pages_total),
    }
    yield gauge("vllm:cache_config_info", "What the KV cache is.", 1, {**labels, **settings})
    for name, help, value in (
        ("prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_queried_tokens_total),
        ("prefix_cache_hits", "Prompt tokens found.", stats.prefix_cached_tokens_total),
        ("num_preemptions", "Times that a sequence had to give way.", stats.num_preemptions),
        ("prompt_tokens", "Tokens of prompts.", stats.prompt_tokens_total),
        ("prompt_tokens_cached", "Those of them that were found.", stats.prefix_cached_tokens_total),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens_total),
        ("spec_decode_num_draft_tokens", "Tokens that speculation proposed.", stats.draft_tokens_total),
        ("spec_decode_num_accepted_tokens", "Those that were right.", stats.accepted_tokens_total),
    ):
        yield counter(f"vllm:{name}", help, value, labels)
    yield counter(
        "vllm:request_success",
        "Completions that ended, by the reason.",
        dict(recorder.finished),
        labels,
        by="finished_reason",
    )
    for name, help, values in (
        ("request_prompt_tokens", "Tokens of a prompt.", recorder.prompt_tokens),
        ("request_prefill_kv_computed_tokens", "Those that were not found.", recorder.computed_tokens),
        ("request_generation_tokens", "Tokens of a completion.", recorder.generation_tokens),
        ("request_max_num_generation_tokens", "Tokens of the longest completion.", recorder.most_tokens),
        ("request_params_n", "Completions asked for.", recorder.n),
        ("request_params_max_tokens", "The limit asked for.", recorder.max_tokens),
        ("iteration_tokens_total", "Tokens of a step.", engine.steps.tokens),
        ("time_to_first_token_seconds", "From the request to its first token.", recorder.first_token),
        ("inter_token_latency_seconds", "Between two tokens.", recorder.next_token),
        ("request_time_per_output_token_seconds", "Mean of a request.", recorder.per_token),
        ("e2e_request_latency_seconds", "From the request to its end.", recorder.whole),
        ("request_queue_time_seconds", "Until the prompt is begun.", recorder.queue),
        ("request_inference_time_seconds", "From there to the end.", recorder.inference),
        ("request_prefill_time_seconds", "From there to the first token.", recorder.prefill),
        ("request_decode_time_seconds", "From there to the last one.", recorder.decode),
    ):
        yield histogram(f"vllm:{name}", help, values, labels)
    if config.max_loras:
        running, waiting = recorder.adapters()
        # As vLLM has it, for routers that look for the server whose adapter is warm: labels, at this moment.
        yield gauge(
            "vllm:lora_requests_info",
            "LoRA adapters of the requests under way; its value is the time.",
            time.time(),
            {
                "max_lora": str(config.max_loras),
                "running_lora_adapters": ",".join(sorted(running)),
                "waiting_lora_adapters": ",".join(sorted(waiting)),
            },
        )
