"""Options of the process: its configuration, its log, its end; and those without effect."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar

from . import config_file, manual
from .option import flag


@dataclass(frozen=True, slots=True)
class ProcessFlags:
    """Begin and end."""

    title: ClassVar[str] = "Process"

    help: Annotated[
        bool, flag("Show this and exit.", "--help", "-h", is_eager=True, callback=manual.show, env=None)
    ] = False
    config: Annotated[
        str | None,
        flag(
            "YAML file of options by their long names, with - or _. The command line and variables win over "
            "it.",
            metavar="FILE",
            is_eager=True,
            callback=config_file.load,
        ),
    ] = None
    shutdown_timeout: Annotated[
        float,
        flag(
            "Seconds that running requests get to finish after Ctrl-C or SIGTERM; a second Ctrl-C ends them "
            "at once.",
            "--shutdown-timeout",
            "--graceful-termination-timeout",
            metavar="SECONDS",
            env=("GRACEFUL_TERMINATION_TIMEOUT",),
        ),
    ] = 5.0
    exit_with_parent: Annotated[
        bool,
        flag(
            "Stop when stdin ends. For programs that start a server: hold the other end of its stdin, and "
            "the server goes with you, however you end."
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class LogFlags:
    """Tell what happens."""

    title: ClassVar[str] = "Logs and traces"

    log_level: Annotated[
        str,
        flag(
            "From which level on: info has lines for every request, without its prompt or answer.",
            metavar="debug|info|warning|error|critical",
        ),
    ] = "warning"
    log_format: Annotated[
        str, flag("Lines with key=value, or a JSON object a line.", metavar="text|json")
    ] = "text"
    json_output: Annotated[
        bool, flag("TGI's word for --log-format json.", hidden=True, env=("JSON_OUTPUT",))
    ] = False
    enable_log_requests: Annotated[bool, flag("Log prompts and parameters, too.")] = False
    max_log_len: Annotated[
        int | None, flag("Most characters of a prompt, and token ids, in the log. Default: all.", min=0)
    ] = None
    uvicorn_log_level: Annotated[
        str | None, flag("The same as --log-level, for the HTTP library alone.", metavar="LEVEL")
    ] = None
    disable_uvicorn_access_log: Annotated[
        bool, flag("Leave out the line for each HTTP request, whatever the level.")
    ] = False
    enable_request_id_headers: Annotated[
        bool, flag("Put a request's X-Request-Id, its own or one made up, into its answer.")
    ] = False
    otlp_traces_endpoint: Annotated[
        str | None,
        flag(
            "Send a span for each request to this OpenTelemetry collector, as in "
            "http://localhost:4318/v1/traces (extra otel).",
            "--otlp-traces-endpoint",
            "--otlp-endpoint",
            metavar="URL",
            env=("OTLP_ENDPOINT",),
        ),
    ] = None


def _ignored(*names: str) -> object:
    return flag("Without effect.", *names, hidden=True)


@dataclass(frozen=True, slots=True)
class IgnoredFlags:
    """Take options of vLLM and TGI that cannot matter here, so that commands written for them work."""

    title: ClassVar[str] = "Without effect"
    REASONS: ClassVar[dict[str, str]] = {
        "load_format": "what the files hold is found out",
        "max_lora_rank": "adapters of any rank are taken",
        "disable_log_requests": "prompts are only logged with --enable-log-requests",
        "disable_log_stats": "what is measured is at /metrics, and not in the log",
        "enable_server_load_tracking": "/load is always there",
        "enable_chunked_prefill": "prompts are always read in chunks",
        "guided_decoding_backend": "there is one, which enforces everything",
        "swap_space": "sequences that give way are computed again",
        "max_seq_len_to_capture": "CUDA graphs are captured for every length",
        "max_batch_total_tokens": "the KV cache holds what fits its memory (--kv-cache-memory)",
        "max_waiting_tokens": "prompts join the batch at every step",
        "waiting_served_ratio": "prompts join the batch at every step",
        "validation_workers": "prompts are checked by threads of their own",
        "usage_stats": "nothing is sent to anybody",
        "disable_usage_stats": "nothing is sent to anybody",
        "task": "one server makes text and embeddings",
        "runner": "one server makes text and embeddings",
        "enable_reasoning": "--reasoning-parser alone says it",
        "scheduling_policy": "who waits is taken by priority, and by age among equals",
        "preemption_mode": "sequences that give way are computed again",
        "num_scheduler_steps": "every step is planned anew",
        "use_v2_block_manager": "there is one way to manage pages",
        "async_scheduling": "steps overlap where that helps, on a GPU",
        "distributed_executor_backend": "the processes that share a model are this server's own",
        "disable_frontend_multiprocessing": "HTTP and the engine are one process",
        "sharded": "--num-shard alone says it",
        "enable_prefill_logprobs": "decoder_input_details are there for whoever asks",
        "disable_custom_kernels": "kernels are used where they are right for the model",
    }

    load_format: Annotated[str | None, _ignored()] = None
    max_lora_rank: Annotated[str | None, _ignored()] = None
    disable_log_requests: Annotated[bool, _ignored()] = False
    disable_log_stats: Annotated[bool, _ignored()] = False
    enable_server_load_tracking: Annotated[bool, _ignored()] = False
    enable_chunked_prefill: Annotated[bool, _ignored()] = False
    guided_decoding_backend: Annotated[str | None, _ignored()] = None
    swap_space: Annotated[str | None, _ignored()] = None
    max_seq_len_to_capture: Annotated[str | None, _ignored()] = None
    max_batch_total_tokens: Annotated[str | None, _ignored()] = None
    max_waiting_tokens: Annotated[str | None, _ignored()] = None
    waiting_served_ratio: Annotated[str | None, _ignored()] = None
    validation_workers: Annotated[str | None, _ignored()] = None
    usage_stats: Annotated[str | None, _ignored()] = None
    disable_usage_stats: Annotated[bool, _ignored()] = False
    task: Annotated[str | None, _ignored()] = None
    runner: Annotated[str | None, _ignored()] = None
    enable_reasoning: Annotated[bool, _ignored()] = False
    scheduling_policy: Annotated[str | None, _ignored()] = None
    preemption_mode: Annotated[str | None, _ignored()] = None
    num_scheduler_steps: Annotated[str | None, _ignored()] = None
    use_v2_block_manager: Annotated[bool, _ignored()] = False
    async_scheduling: Annotated[bool, _ignored()] = False
    distributed_executor_backend: Annotated[str | None, _ignored()] = None
    disable_frontend_multiprocessing: Annotated[bool, _ignored()] = False
    sharded: Annotated[str | None, _ignored()] = None
    enable_prefill_logprobs: Annotated[bool, _ignored()] = False
    disable_custom_kernels: Annotated[bool, _ignored()] = False

    def notes(self) -> list[str]:
        """Return what to tell about those that were given."""
        return [
            f"`--{item.name.replace('_', '-')}` has no effect here: {self.REASONS[item.name]}"
            for item in fields(self)
            if getattr(self, item.name)
        ]
