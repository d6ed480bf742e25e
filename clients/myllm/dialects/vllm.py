"""vLLM's OpenAI-compatible server, and `myllm serve`, which speaks the same.

Parameters: vLLM's documentation of its OpenAI-compatible server, "Extra parameters", and the request types
of 0.6.3 and 0.32.0 (`vllm/entrypoints/openai/`).
"""

from __future__ import annotations

from typing import Any

from ..params import CONSTRAINTS
from ..wire import Call, ServerInfo
from ._base import refuse
from .openai import OpenAIDialect, json_schema_format
from .tokenizers import VLLMTokenizer

_SAMPLING = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "bad_words",
     "allowed_token_ids", "use_beam_search", "length_penalty", "include_stop_str_in_output",
     "prompt_logprobs", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
     "add_special_tokens", "priority"}
)  # fmt: skip
_CHAT = frozenset(
    {"echo", "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs",
     "documents"}
)  # fmt: skip

# `structured_outputs` came with 0.11.0 (vllm#22772), beside `guided_*`, which 0.12.0 removed (vllm#29326)
# and every later version ignores without a word (vllm#53975).
_STRUCTURED_OUTPUTS = (0, 12)
# The V1 engine never drew `best_of` answers to choose from; 0.11.0 has no other (vllm#13361).
_NO_BEST_OF = (0, 11)
_WORDS = {"json_schema": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}


class VLLMDialect(OpenAIDialect):
    """OpenAI's parameters and vLLM's extra sampling parameters, sent as top-level fields."""

    name = "vllm"
    chat_params = OpenAIDialect.chat_params | _SAMPLING | _CHAT
    completion_params = OpenAIDialect.completion_params | _SAMPLING
    tokenizer = VLLMTokenizer()

    def depends_on_server(self, call: Call) -> bool:
        """See `Dialect.depends_on_server`: constraints are spelled by version, and `best_of` is gone."""
        params = call.params
        return any(getattr(params, name) is not None for name in CONSTRAINTS) or _draws_more(call)

    def body(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.body`."""
        body = super().body(call, server)
        if _draws_more(call):
            drops_it = server.version is None or server.version >= _NO_BEST_OF
            if drops_it and "best_of" not in server.features:
                raise refuse(
                    "best_of", call.params.best_of, self.name, "the completion endpoint",
                    "vLLM dropped it with 0.11: ask for `n` answers with `logprobs`, and take the likeliest.",
                )  # fmt: skip
        elif call.kind == "completion":
            body.pop("best_of", None)  # as many as `n` are drawn anyway
        return body

    def shape(self, call: Call, name: str, value: Any, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.shape`.

        A server that does not tell its version (behind a proxy) gets a schema as `response_format`, which
        every version since 0.6.4 obeys in a chat, and all else as `structured_outputs`: a vLLM older than
        0.11 would ignore that, a newer one would ignore the other spelling; either way the answer is checked.
        """
        if name == "response_format":
            return {"response_format": value}
        if server.version is not None and server.version < _STRUCTURED_OUTPUTS:
            return {f"guided_{_WORDS[name]}": value}
        if server.version is None and name == "json_schema" and call.kind == "chat":
            return {"response_format": json_schema_format(value)}
        return {"structured_outputs": {_WORDS[name]: value}}


def _draws_more(call: Call) -> bool:
    """Whether more answers are to be drawn than are wanted."""
    return (call.params.best_of or 1) > (call.params.n or 1)
