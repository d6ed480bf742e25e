"""llama.cpp: its own `llama-server`, and the server of llama-cpp-python, which is another program.

Wire formats: llama-server `tools/server/README.md` and `server-schema.cpp` (it takes its own sampling
parameters on OpenAI's routes too); llama-cpp-python `llama_cpp/server/types.py`. Both ignore the fields that
they do not know, so that whatever is none of theirs is refused here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..constraints import schema_in
from ..types import Answer, ChatChunk, ChatCompletion, Completion, CompletionChunk, Logprobs
from ..wire import Call, Reply, ServerInfo, WireRequest
from ._base import ChunkReader, _Done, is_neutral, load_json, refuse
from ._shared import choice_grammar, joined, seeds
from .openai import OpenAIDialect, OpenAIReader
from .tokenizers import LlamaCppPythonTokenizer, LlamaServerTokenizer, tokenizer_answer

_SAMPLING = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "repetition_penalty",
     "frequency_penalty", "presence_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "logit_bias",
     "user"}
)  # fmt: skip


class _LlamaCpp(OpenAIDialect):
    """What the two servers have in common."""

    renamed: Mapping[str, str] = MappingProxyType({"repetition_penalty": "repeat_penalty"})

    def generation_requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """Return `n` requests.

        llama-server gives no more answers at once than it has slots, and llama-cpp-python one.
        """
        different = seeds(call, self.name)
        single = replace(call, params=call.params.model_copy(update={"n": None, "seed": None}))
        (request,) = super().generation_requests(single, server)
        return [replace(request, json={**request.json, **seed, **call.extra_body}) for seed in different]

    def body(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.body`."""
        body = super().body(call, server)
        for ours, theirs in self.renamed.items():
            if ours in body:
                body[theirs] = body.pop(ours)
        if "top_k" in body:
            body["top_k"] = max(body["top_k"], 0)  # off is 0 here
        return body

    def shape(self, call: Call, name: str, value: Any, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.shape`. `grammar` is GBNF, llama.cpp's format of grammars."""
        if is_neutral(name, value):
            return {}
        if name == "regex":
            raise refuse(
                name, value, self.name, "the server", "Write it as a `grammar=` in llama.cpp's GBNF."
            )
        if name in ("grammar", "choice"):
            return {"grammar": value if name == "grammar" else choice_grammar(value)}
        return self.schema(call, value if name == "json_schema" else _schema_in(value, self.name))

    def schema(self, call: Call, schema: dict[str, Any]) -> dict[str, Any]:
        """Return llama-server's own field, which both of its endpoints read."""
        return {"json_schema": schema}


class LlamaCppDialect(_LlamaCpp):
    """Both servers; `ServerInfo.product` tells them apart, and llama-server is assumed where it is empty.

    `n` becomes that many requests.
    """

    name = "llamacpp"
    chat_params = (
        _SAMPLING
        | {"typical_p", "ignore_eos", "repeat_last_n", "tools", "tool_choice", "parallel_tool_calls"}
        | {"reasoning_effort", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"}
    )
    completion_params = _SAMPLING | {"typical_p", "ignore_eos", "repeat_last_n"}
    tokenizer = LlamaServerTokenizer()

    def depends_on_server(self, call: Call) -> bool:
        """See `Dialect.depends_on_server`: the two servers have words of their own."""
        return True

    def requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """See `Dialect.requests`."""
        if server.product.startswith(_PYTHON.name):
            return _PYTHON.requests(call, server)
        return super().requests(call, server)

    def body(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.body`."""
        body = super().body(call, server)
        caps = (server.facts.get("/props") or {}).get("chat_template_caps") or {}
        if "tools" in body and caps.get("supports_tools") is False:
            raise refuse(
                "tools", body["tools"], self.name, "the chat endpoint",
                "The model's chat template has no place for tools, and llama-server would leave them out.",
            )  # fmt: skip
        if isinstance(body.get("tool_choice"), dict):
            raise refuse(
                "tool_choice", body["tool_choice"], self.name, "the chat endpoint",
                'Give that one tool in `tools`, with `tool_choice="required"`.',
            )  # fmt: skip
        if "logit_bias" in body:
            # Pairs are the form that every version reads.
            body["logit_bias"] = [[token, bias] for token, bias in body["logit_bias"].items()]
        if call.params.wanted_logprobs is not None:
            # 0 alternatives would turn log-probabilities off; the one too many is cut from the answer.
            name = "top_logprobs" if call.kind == "chat" else "n_probs"
            body[name] = max(call.params.wanted_logprobs, 1)
            if call.kind == "completion":
                del body["logprobs"]
        return body

    def answer(self, call: Call, replies: Sequence[Reply]) -> Answer:
        """See `Dialect.answer`; the two servers' tokens are told apart by their fields."""
        if call.kind in ("tokenize", "detokenize"):
            raw = load_json(replies[0].body)
            python = "text" in raw or any(isinstance(token, int) for token in raw.get("tokens", ()))
            return tokenizer_answer(_PYTHON.tokenizer if python else self.tokenizer, call, raw)
        return super().answer(call, replies)

    def generated(self, call: Call, replies: Sequence[Reply]) -> ChatCompletion | Completion:
        """See `OpenAIDialect.generated`."""
        answers = [super(LlamaCppDialect, self).generated(call, [reply]) for reply in replies]
        answer: ChatCompletion | Completion = joined(answers)  # type: ignore[type-var]
        for choice in answer.choices:
            _trim(choice.logprobs, call)
        return answer

    def reader(self, call: Call) -> ChunkReader:
        """See `Dialect.reader`."""
        return _Reader(call, self)


class _LlamaCppPython(_LlamaCpp):
    """The words of llama-cpp-python's server; its answers are read as llama-server's are."""

    name = "llama-cpp-python"
    renamed = MappingProxyType({**_LlamaCpp.renamed, "mirostat": "mirostat_mode"})
    chat_params = _SAMPLING | {"min_tokens", "tools", "tool_choice"}
    completion_params = _SAMPLING | {"min_tokens", "echo", "suffix"}
    tokenizer = LlamaCppPythonTokenizer()

    def body(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.body`."""
        where = f"the {call.kind} endpoint"
        if call.kind == "completion" and not isinstance(call.prompt, str):
            raise refuse("prompt", call.prompt, self.name, where, "It takes text only.")
        if call.params.max_tokens == 0:
            raise refuse("max_tokens", 0, self.name, where, "There, 0 means as many as fit.")
        if call.params.tool_choice == "required":
            raise refuse("tool_choice", "required", self.name, where, "Name the function to be called.")
        if call.params.echo and call.params.wanted_logprobs is not None:
            raise refuse(
                "echo", True, self.name, where, "Without `logprobs` it has: together, the numbers shift."
            )
        return super().body(call, server)

    def schema(self, call: Call, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the form of `response_format` that its chat endpoint reads; the other has none."""
        if call.kind == "chat":
            return {"response_format": {"type": "json_object", "schema": schema}}
        raise refuse(
            "json_schema", schema, self.name, "the completion endpoint", "Use a chat, or a `grammar=` (GBNF)."
        )


_PYTHON = _LlamaCppPython()


class _Reader(OpenAIReader):
    def __init__(self, call: Call, dialect: LlamaCppDialect) -> None:
        super().__init__(call, dialect)
        self._call = call
        self._named: set[str] = set()

    def read(self, data: bytes) -> ChatChunk | CompletionChunk | _Done | None:
        chunk = super().read(data)
        if isinstance(chunk, ChatChunk | CompletionChunk):
            for choice in chunk.choices:
                _trim(choice.logprobs, self._call)
        if isinstance(chunk, ChatChunk):
            self._name_once(chunk)
        return chunk

    def _name_once(self, chunk: ChatChunk) -> None:
        """Take the names out that llama-cpp-python repeats with every piece of a call's arguments."""
        for call in (call for choice in chunk.choices for call in choice.delta.tool_calls or ()):
            if call.id in self._named:
                call.function.name = None
            elif call.id is not None:
                self._named.add(call.id)


def _schema_in(wanted: dict[str, Any], dialect: str) -> dict[str, Any]:
    """Return the JSON Schema that a `response_format` asks for."""
    schema: dict[str, Any] | None = schema_in(wanted)
    if wanted.get("type") == "json_object":
        return schema or {"type": "object"}
    if schema is None:
        raise refuse("response_format", wanted, dialect, "the server", "It wants a schema.")
    return schema


def _trim(logprobs: Logprobs | None, call: Call) -> None:
    """Cut the alternatives to as many as were asked for."""
    for token in (logprobs.content if logprobs else None) or ():
        token.top_logprobs = token.top_logprobs[: call.params.wanted_logprobs or 0]
