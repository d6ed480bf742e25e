"""Where each kind of server takes texts apart into tokens, and puts them together again.

A text is tokenized as the completion endpoint does it, with the special tokens that it adds, and a
conversation as the chat endpoint does it, so that the count is what a call would cost.

Wire formats: vLLM `entrypoints/serve/tokenize/protocol.py`; SGLang `entrypoints/openai/protocol.py`; TGI
`router/src/server.rs`; llama-server `tools/server/README.md`; llama-cpp-python `llama_cpp/server/app.py`.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import UnsupportedFeatureError
from ..types import Detokenized, Tokens
from ..wire import Call, WireRequest
from ._base import is_neutral, refuse

SHAPING = (
    "add_special_tokens", "tools", "documents", "chat_template", "chat_template_kwargs", "reasoning_effort",
    "add_generation_prompt", "continue_final_message",
)  # fmt: skip
"""The parameters that change what the prompt is; no other one matters to a tokenizer."""
_VLLM_TEXT = ("add_special_tokens",)
_VLLM_CHAT = (
    "add_special_tokens", "tools", "chat_template", "chat_template_kwargs", "add_generation_prompt",
    "continue_final_message",
)  # fmt: skip
_SGLANG_CHAT = (
    "add_special_tokens", "tools", "chat_template_kwargs", "reasoning_effort", "continue_final_message"
)  # fmt: skip
_LLAMA_CHAT = (
    "tools", "chat_template_kwargs", "reasoning_effort", "add_generation_prompt", "continue_final_message"
)  # fmt: skip


class TokenizerRoutes(Protocol):
    """The tokenizer's endpoints of one kind of server."""

    def tokenize(self, call: Call) -> WireRequest:
        """Return the request that tokenizes `call.prompt` or `call.messages`."""

    def detokenize(self, call: Call) -> WireRequest:
        """Return the request that gives the text of the ids in `call.prompt`."""

    def tokens(self, raw: Any) -> Tokens:
        """Read the answer to `tokenize`."""

    def text(self, raw: Any) -> Detokenized:
        """Read the answer to `detokenize`."""


def tokenizer_request(routes: TokenizerRoutes | None, call: Call, dialect: str) -> WireRequest:
    """Return the request for a call of kind "tokenize" or "detokenize".

    Raises:
        UnsupportedFeatureError: servers of this kind do not let their tokenizer be asked for that.
    """
    if routes is None:
        raise UnsupportedFeatureError(
            f"{dialect!r} servers have no endpoint for their tokenizer, so nothing was sent.",
            hint="Count with the model's own tokenizer instead.",
        )
    return routes.tokenize(call) if call.kind == "tokenize" else routes.detokenize(call)


def tokenizer_answer(routes: TokenizerRoutes | None, call: Call, raw: Any) -> Tokens | Detokenized:
    """Read the answer to `tokenizer_request`."""
    assert routes is not None  # else there was no request
    answer = routes.tokens(raw) if call.kind == "tokenize" else routes.text(raw)
    answer.model = call.model
    answer._raw = raw
    return answer


class VLLMTokenizer:
    """vLLM's `/tokenize` and `/detokenize`."""

    dialect = "vllm"
    prefix = ""
    chat_params: tuple[str, ...] = _VLLM_CHAT

    def tokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.tokenize`."""
        body = _model(call)
        if call.messages is not None:
            body |= {"messages": call.messages, **_shaping(call, self.dialect, self.chat_params)}
        else:
            body |= {"prompt": _text(call, self.dialect), **_shaping(call, self.dialect, _VLLM_TEXT)}
        return _post(call, self.prefix + "/tokenize", body)

    def detokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.detokenize`."""
        return _post(call, self.prefix + "/detokenize", {**_model(call), "tokens": call.prompt})

    def tokens(self, raw: Any) -> Tokens:
        """See `TokenizerRoutes.tokens`."""
        # vLLM's `token_strs` are the vocabulary's spelling ("Ġthe"), not text.
        return Tokens(ids=raw["tokens"], count=raw["count"], max_model_len=raw["max_model_len"])

    def text(self, raw: Any) -> Detokenized:
        """See `TokenizerRoutes.text`."""
        return Detokenized(text=raw["prompt"])


class SGLangTokenizer(VLLMTokenizer):
    """SGLang's: vLLM's under `/v1`, but for a name."""

    dialect = "sglang"
    prefix = "/v1"
    chat_params = _SGLANG_CHAT

    def text(self, raw: Any) -> Detokenized:
        """See `TokenizerRoutes.text`."""
        return Detokenized(text=raw["text"])


class TGITokenizer:
    """TGI's `/tokenize` and `/chat_tokenize`; it has no way back to text."""

    def tokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.tokenize`."""
        if call.messages is None:
            _shaping(call, "tgi", ())
            return _post(call, "/tokenize", {"inputs": _text(call, "tgi")})
        body = {"messages": call.messages, **_shaping(call, "tgi", ("tools",)), **call.extra_body}
        # TGI's route takes GET, with a body (router/src/server.rs).
        return WireRequest(method="GET", path="/chat_tokenize", json=body)

    def detokenize(self, call: Call) -> WireRequest:
        """Refuse."""
        raise UnsupportedFeatureError("'tgi' servers cannot detokenize, so nothing was sent.")

    def tokens(self, raw: Any) -> Tokens:
        """See `TokenizerRoutes.tokens`."""
        entries = raw["tokenize_response"] if isinstance(raw, dict) else raw
        ids, texts = [entry["id"] for entry in entries], [entry["text"] for entry in entries]
        return Tokens(ids=ids, count=len(ids), texts=texts)

    def text(self, raw: Any) -> Detokenized:
        """See `TokenizerRoutes.text`; never reached."""
        raise UnsupportedFeatureError("'tgi' servers cannot detokenize.")


class LlamaServerTokenizer:
    """llama-server's endpoints. Of a conversation it tells the number of tokens only."""

    def tokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.tokenize`."""
        if call.messages is None:
            # Unasked, this endpoint leaves the special tokens out that the completion endpoint adds.
            special = _shaping(call, "llamacpp", ("add_special_tokens",)).get("add_special_tokens", True)
            body = {"content": _text(call, "llamacpp"), "add_special": special, "with_pieces": True}
            return _post(call, "/tokenize", body)
        shaping = _shaping(call, "llamacpp", _LLAMA_CHAT)
        return _post(call, "/v1/chat/completions/input_tokens", {"messages": call.messages, **shaping})

    def detokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.detokenize`."""
        return _post(call, "/detokenize", {"tokens": call.prompt})

    def tokens(self, raw: Any) -> Tokens:
        """See `TokenizerRoutes.tokens`."""
        if "input_tokens" in raw:
            return Tokens(count=raw["input_tokens"])
        ids = [entry["id"] for entry in raw["tokens"]]
        return Tokens(ids=ids, count=len(ids), texts=[_piece(entry["piece"]) for entry in raw["tokens"]])

    def text(self, raw: Any) -> Detokenized:
        """See `TokenizerRoutes.text`."""
        return Detokenized(text=raw["content"])


class LlamaCppPythonTokenizer:
    """llama-cpp-python's `/extras/…`; it cannot tokenize a conversation."""

    def tokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.tokenize`."""
        if call.messages is not None:
            raise UnsupportedFeatureError(
                "llama-cpp-python's server tokenizes text only, no messages, so nothing was sent.",
                hint="Tokenize the prompt's text, or run llama-server, which counts messages.",
            )
        _shaping(call, "llama-cpp-python", ())
        return _post(call, "/extras/tokenize", {**_model(call), "input": _text(call, "llamacpp")})

    def detokenize(self, call: Call) -> WireRequest:
        """See `TokenizerRoutes.detokenize`."""
        return _post(call, "/extras/detokenize", {**_model(call), "tokens": call.prompt})

    def tokens(self, raw: Any) -> Tokens:
        """See `TokenizerRoutes.tokens`."""
        return Tokens(ids=raw["tokens"], count=len(raw["tokens"]))

    def text(self, raw: Any) -> Detokenized:
        """See `TokenizerRoutes.text`."""
        return Detokenized(text=raw["text"])


def _model(call: Call) -> dict[str, Any]:
    return {} if call.model is None else {"model": call.model}


def _post(call: Call, path: str, body: dict[str, Any]) -> WireRequest:
    return WireRequest(method="POST", path=path, json={**body, **call.extra_body})


def _text(call: Call, dialect: str) -> str:
    if not isinstance(call.prompt, str):
        raise refuse("prompt", call.prompt, dialect, "the tokenizer", "Token ids are tokens already.")
    return call.prompt


def _shaping(call: Call, dialect: str, known: tuple[str, ...]) -> dict[str, Any]:
    """Return the parameters that shape the prompt, under the servers' names, which are ours."""
    shaping = {}
    for name, value in call.params.set_values().items():
        if name in known:
            shaping[name] = value
        elif name in SHAPING and not is_neutral(name, value):
            raise refuse(name, value, dialect, "the tokenizer")
    return shaping


def _piece(piece: str | list[int]) -> str:
    """Return a token's text; one that is no whole character comes as bytes."""
    return piece if isinstance(piece, str) else bytes(piece).decode("utf-8", "replace")
