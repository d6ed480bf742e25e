"""Options that bound memory and requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .option import flag


@dataclass(frozen=True, slots=True)
class MemoryFlags:
    """Share out the memory."""

    title: ClassVar[str] = "Memory"

    max_model_len: Annotated[
        int | None,
        flag(
            "Limit on prompt and completion together, in tokens. Default: the model's own.",
            "--max-model-len",
            "--max-total-tokens",
            env=("MAX_TOTAL_TOKENS",),
        ),
    ] = None
    max_num_seqs: Annotated[
        int,
        flag(
            "Sequences that run at once; more wait.",
            "--max-num-seqs",
            "--max-batch-size",
            env=("MAX_BATCH_SIZE",),
        ),
    ] = 64
    max_num_batched_tokens: Annotated[
        int | None,
        flag(
            "Tokens of one step, over all sequences. Larger: prompts are read faster, and streams wait "
            "longer meanwhile. Default: 512 on CPU, 8192 on a GPU.",
            "--max-num-batched-tokens",
            "--max-batch-prefill-tokens",
            env=("MAX_BATCH_PREFILL_TOKENS",),
        ),
    ] = None
    page_size: Annotated[
        int,
        flag(
            "Tokens of a page of the KV cache; whole pages are shared by prompts that begin alike.",
            "--page-size",
            "--block-size",
        ),
    ] = 16
    kv_cache_memory: Annotated[
        str | None,
        flag(
            "Memory for the KV cache, as in 512MiB or 4GiB. Default: taken from what is free.",
            "--kv-cache-memory",
            "--kv-cache-memory-bytes",
            metavar="SIZE",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        float,
        flag(
            "Share of the GPU's memory that weights, activations and KV cache may take together.",
            "--gpu-memory-utilization",
            "--cuda-memory-fraction",
            metavar="SHARE",
            env=("CUDA_MEMORY_FRACTION",),
        ),
    ] = 0.9


@dataclass(frozen=True, slots=True)
class LimitFlags:
    """Bound what a request may ask, and how many may ask at once."""

    title: ClassVar[str] = "Limits of requests"

    max_num_queued_reqs: Annotated[
        int | None,
        flag(
            "Sequences that may wait besides those that run; a request has one for each completion it asks "
            "for. What does not fit is answered with 503 (429 on TGI's routes). Default: no limit.",
            min=0,
        ),
    ] = None
    max_concurrent_requests: Annotated[
        int | None,
        flag(
            "Requests that are answered at once, waiting ones included; more are answered in the same way. "
            "Default: no limit.",
            min=1,
            env=("MAX_CONCURRENT_REQUESTS",),
        ),
    ] = None
    request_timeout: Annotated[
        float | None,
        flag(
            "Seconds that a request may take, from its first byte on and waiting included; then it is ended, "
            "with 504. Default: no limit.",
            metavar="SECONDS",
        ),
    ] = None
    max_body_size: Annotated[
        str,
        flag(
            "Largest body of a request, as in 512KiB or 8MiB; a larger one is answered with 413.",
            "--max-body-size",
            "--payload-limit",
            metavar="SIZE",
            env=("PAYLOAD_LIMIT",),
        ),
    ] = "8MiB"
    max_images: Annotated[int, flag("Most images in a request.", min=0)] = 4
    max_image_pixels: Annotated[int, flag("Largest width times height of an image.", min=1)] = 16_777_216
    max_image_size: Annotated[str, flag("Largest image in a request.", metavar="SIZE")] = "20MiB"
    max_logprobs: Annotated[int, flag("Largest logprobs and top_logprobs on OpenAI's routes.", min=0)] = 20
    max_stored_responses: Annotated[
        int, flag("Responses that /v1/responses keeps, for later requests to refer to; 0: none.", min=0)
    ] = 1000
    max_input_tokens: Annotated[
        int | None,
        flag(
            "Longest prompt, in tokens, on every route. Default: what fits the context with one new token.",
            "--max-input-tokens",
            "--max-input-length",
            min=1,
            env=("MAX_INPUT_TOKENS", "MAX_INPUT_LENGTH"),
        ),
    ] = None
    max_client_batch_size: Annotated[
        int, flag("Most instances of a request to /vertex.", min=1, env=("MAX_CLIENT_BATCH_SIZE",))
    ] = 4
    max_best_of: Annotated[int, flag("Largest best_of on TGI's routes.", min=1, env=("MAX_BEST_OF",))] = 2
    max_stop_sequences: Annotated[
        int, flag("Most stop strings on TGI's routes.", min=0, env=("MAX_STOP_SEQUENCES",))
    ] = 4
    max_top_n_tokens: Annotated[
        int, flag("Largest top_n_tokens on TGI's routes.", min=0, env=("MAX_TOP_N_TOKENS",))
    ] = 5
    disable_grammar_support: Annotated[
        bool,
        flag(
            "Refuse every request whose answer would be held to a form, on every route: grammar, "
            "response_format, guided_json and the like, and tools that must be called.",
            env=("DISABLE_GRAMMAR_SUPPORT",),
        ),
    ] = False
