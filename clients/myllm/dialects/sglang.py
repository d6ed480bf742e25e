"""SGLang's OpenAI-compatible server.

Wire format: `python/sglang/srt/entrypoints/openai/protocol.py`, and
https://docs.sglang.ai/basic_usage/openai_api_completions.html.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..types import ChatChunk, ChatCompletion, Completion, CompletionChunk
from ..wire import Call, Reply, ServerInfo
from ._base import ChunkReader, _Done
from ._shared import choice_grammar
from .openai import OpenAIDialect, OpenAIReader, json_schema_format
from .tokenizers import SGLangTokenizer

_SAMPLING = frozenset(
    {"top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
     "include_stop_str_in_output", "skip_special_tokens"}
)  # fmt: skip


class SGLangDialect(OpenAIDialect):
    """OpenAI's parameters, SGLang's sampling parameters, and its constraints.

    `grammar` is EBNF as xgrammar reads it. `seed` decides the draw only on a server that was started with
    `--enable-deterministic-inference`.
    """

    name = "sglang"
    chat_params = OpenAIDialect.chat_params | _SAMPLING | {"chat_template_kwargs", "continue_final_message"}
    # `best_of` and `suffix` are fields, too, but nothing comes of them.
    completion_params = OpenAIDialect.completion_params - {"best_of", "suffix"} | _SAMPLING
    tokenizer = SGLangTokenizer()

    def body(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.body`."""
        body = super().body(call, server)
        if body.get("top_k") == 0:
            body["top_k"] = -1  # off
        if "include_stop_str_in_output" in body:
            body["no_stop_trim"] = body.pop("include_stop_str_in_output")
        return body

    def shape(self, call: Call, name: str, value: Any, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.shape`."""
        if name == "json_schema" and call.kind == "completion":
            return {"json_schema": json.dumps(value)}  # a field for JSON text, which a chat has not
        if name == "json_schema":
            return {"response_format": json_schema_format(value)}
        if name == "choice":
            return {"ebnf": choice_grammar(value)}
        return {"ebnf" if name == "grammar" else name: value}

    def generated(self, call: Call, replies: Sequence[Reply]) -> ChatCompletion | Completion:
        """See `OpenAIDialect.generated`."""
        answer = super().generated(call, replies)
        _name_stops(answer, call)
        return answer

    def reader(self, call: Call) -> ChunkReader:
        """See `Dialect.reader`."""
        return _Reader(call, self)


class _Reader(OpenAIReader):
    def __init__(self, call: Call, dialect: SGLangDialect) -> None:
        super().__init__(call, dialect)
        self._call = call

    def read(self, data: bytes) -> ChatChunk | CompletionChunk | _Done | None:
        chunk = super().read(data)
        if isinstance(chunk, ChatChunk | CompletionChunk):
            _name_stops(chunk, self._call)
        return chunk


def _name_stops(answer: ChatCompletion | Completion | ChatChunk | CompletionChunk, call: Call) -> None:
    """Set `stop_reason` from SGLang's `matched_stop`, which also names the end-of-text token."""
    for choice in answer.choices:
        if "matched_stop" in (choice.model_extra or {}):
            matched = (choice.model_extra or {})["matched_stop"]
            wanted = isinstance(matched, str) or matched in (call.params.stop_token_ids or ())
            choice.stop_reason = matched if wanted else None
