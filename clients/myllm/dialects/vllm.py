"""vLLM's OpenAI-compatible server, and `myllm serve`, which speaks the same.

Parameters: vLLM's documentation of its OpenAI-compatible server, "Extra parameters".
"""

from __future__ import annotations

from .openai import OpenAIDialect

_SAMPLING = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
     "include_stop_str_in_output", "skip_special_tokens", "truncate_prompt_tokens"}
)  # fmt: skip


class VLLMDialect(OpenAIDialect):
    """OpenAI's parameters and vLLM's extra sampling parameters, sent as top-level fields."""

    name = "vllm"
    chat_params = OpenAIDialect.chat_params | _SAMPLING | {"echo", "chat_template_kwargs"}
    completion_params = OpenAIDialect.completion_params | _SAMPLING | {"response_format"}
