"""Text Generation Inference: `/generate` and `/generate_stream` for prompts, its OpenAI route for chat.

Wire format: TGI's published OpenAPI document (v3), its request types (`router/src/lib.rs`) and its
validation rules (`router/src/validation.rs`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..constraints import schema_in
from ..errors import APIStatusError, InvalidResponseError, ServerError, error_class_for_status, short
from ..params import CONSTRAINTS
from ..types import (
    ChatChunk,
    ChatCompletion,
    Completion,
    CompletionChoice,
    CompletionChunk,
    Logprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from ..wire import Call, Reply, ServerInfo, WireRequest
from ._base import ChunkReader, _Done, effective, load_json, refuse
from ._shared import joined, seeds
from .embeddings import no_embeddings
from .openai import OpenAIDialect, OpenAIReader
from .tokenizers import TGITokenizer

MAX_BEST_OF = 2
"""TGI's default `--max-best-of`: more sequences than the server's take requests of their own."""
MAX_STOPS = 4
"""TGI's default `--max-stop-sequences`: more stop strings than the server's are looked for here."""

_NAMES = {
    "max_tokens": "max_new_tokens",
    "top_k": "top_k",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "truncate_prompt_tokens": "truncate",
    "echo": "return_full_text",
    "watermark": "watermark",
}
_HANDLED = frozenset(
    {"temperature", "top_p", "n", "best_of", "seed", "stop", "logprobs", "top_logprobs",
     "include_stop_str_in_output", "user"}
)  # fmt: skip
_FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class TGIDialect(OpenAIDialect):
    """TGI's own words for prompts. TGI keeps the stop text in its answer; here it is cut off.

    `include_stop_str_in_output=True` keeps it.
    """

    name = "tgi"
    # TGI's chat route reads `logit_bias` and ignores it, and takes `presence_penalty` for another one.
    chat_params = (OpenAIDialect.chat_params | {"include_stop_str_in_output"}) - {
        "reasoning_effort",
        "parallel_tool_calls",
        "logit_bias",
        "presence_penalty",
    }

    def depends_on_server(self, call: Call) -> bool:
        """See `Dialect.depends_on_server`: what goes beyond the default limits may be within the server's."""
        params = call.params
        if len(params.stop or ()) > MAX_STOPS:
            return True
        many = call.kind == "completion" and max(params.n or 1, params.best_of or 1) > MAX_BEST_OF
        return many and params.seed is None and params.temperature != 0 and not call.stream

    tokenizer = TGITokenizer()

    def embedding_request(self, call: Call) -> WireRequest:
        """Refuse."""
        raise no_embeddings(
            self.name, 'text-embeddings-inference serves them: ask it with `dialect="openai"`.'
        )

    def generation_requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """Return them: `n` becomes `best_of` where TGI can, else `n` requests, seed by seed."""
        if call.kind == "chat":
            body = self.body(call, server)
            body.pop("n", None)  # TGI reads it and ignores it
            body.pop("include_stop_str_in_output", None)
            if "stop" in body:
                body["stop"] = _known_stops(call, server)
            # TGI samples, at temperature 1, as soon as there is a `top_p`; and 1 is none to it.
            if body.get("temperature") == 0 or body.get("top_p") == 1:
                body.pop("top_p", None)
            return [
                WireRequest(
                    method="POST", path="/v1/chat/completions", json={**body, **seed, **call.extra_body}
                )
                for seed in _seeds(call)
            ]
        if not isinstance(call.prompt, str):
            raise refuse("prompt", call.prompt, self.name, "the generate endpoint", "TGI takes text only.")
        parameters = self._parameters(call, server)
        variants = self._variants(call, server, sampled=parameters["do_sample"])
        path = "/generate_stream" if call.stream else "/generate"
        return [
            WireRequest(
                method="POST",
                path=path,
                json={"inputs": call.prompt, "parameters": {**parameters, **extra}, **call.extra_body},
            )
            for extra in variants
        ]

    def shape(self, call: Call, name: str, value: Any, server: ServerInfo) -> dict[str, Any]:
        """See `OpenAIDialect.shape`: TGI's chat route takes its own `grammar` as `response_format`."""
        grammar = _grammar(call, name, value)
        return {} if grammar is None else {"response_format": grammar}

    def _variants(self, call: Call, server: ServerInfo, sampled: bool) -> list[dict[str, Any]]:
        """Return what sets each of the call's requests apart."""
        n, seed = call.params.n or 1, call.params.seed
        best_of = max(n, call.params.best_of or 1)
        limit = server.limits.get("max_best_of", MAX_BEST_OF)
        # TGI takes best_of only when it samples, and not together with a seed.
        can = sampled and seed is None and best_of <= limit and not call.stream
        if best_of > n and not can:
            raise refuse(
                "best_of", best_of, self.name, "the generate endpoint",
                f"TGI wants it to be at most {limit}, with sampling, without a seed and without a stream.",
            )  # fmt: skip
        return [{"best_of": best_of}] if best_of > 1 and can else _seeds(call)

    def _parameters(self, call: Call, server: ServerInfo) -> dict[str, Any]:
        wanted = effective(call.params)
        greedy = wanted.get("temperature") == 0
        out: dict[str, Any] = {"details": True}
        for name, value in wanted.items():
            if name in _HANDLED:
                continue
            if name in CONSTRAINTS or name == "response_format":
                out["grammar"] = _grammar(call, name, value)
                continue
            if name not in _NAMES:
                raise refuse(name, value, self.name, "the generate endpoint")
            if greedy and name in ("top_k", "typical_p"):
                continue  # Nothing is drawn, so nothing is to be filtered; TGI would take them as "sample".
            out[_NAMES[name]] = value
        if "stop" in wanted:
            out["stop"] = _known_stops(call, server)
        if not greedy:
            out.update({name: wanted[name] for name in ("temperature", "top_p") if name in wanted})
        # TGI samples when any of these is set (a `parameters` object alone means greedy).
        out["do_sample"] = not greedy and any(
            k in out for k in ("temperature", "top_p", "top_k", "typical_p")
        )
        if call.params.wanted_logprobs:
            out["top_n_tokens"] = call.params.wanted_logprobs
        return out

    def generated(self, call: Call, replies: Sequence[Reply]) -> ChatCompletion | Completion:
        """See `OpenAIDialect.generated`."""
        if call.kind == "chat":
            return joined([self._chat_answer(call, reply) for reply in replies])
        raws = [load_json(reply.body) for reply in replies]
        sequences: list[dict[str, Any]] = []
        for raw in raws:
            if isinstance(raw, list) and raw:  # `POST /` of a server behind a compatibility layer
                raw = raw[0]
            if not isinstance(raw, dict) or not isinstance(raw.get("generated_text"), str):
                raise InvalidResponseError(
                    f"The answer has no `generated_text`: {short(raw)}.", hint="Is this a TGI server?"
                )
            details = raw.get("details") or {}
            sequences.append({**details, "generated_text": raw["generated_text"]})
            sequences.extend(details.get("best_of_sequences") or ())
        answer = Completion(
            model=call.model,
            choices=[_choice(call, index, seq) for index, seq in enumerate(sequences[: call.params.n or 1])],
            usage=_usage(replies, sequences),
        )
        answer._raw = raws[0] if len(raws) == 1 else raws
        return answer

    def _chat_answer(self, call: Call, reply: Reply) -> ChatCompletion:
        answer = super().generated(call, [reply])
        assert isinstance(answer, ChatCompletion)
        for choice in answer.choices:
            text, stop = _cut(call, choice.message.content or "")
            choice.finish_reason = _FINISH.get(choice.finish_reason or "", choice.finish_reason)
            choice.stop_reason = stop
            if stop is not None:
                choice.message.content, choice.finish_reason = text, "stop"
        return answer

    def reader(self, call: Call) -> ChunkReader:
        """See `Dialect.reader`."""
        return TGIChatReader(call, self) if call.kind == "chat" else TGIReader(call, self)


class _Cutter:
    """Hands a growing text on up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._hold = max(map(len, call.params.stop or ()), default=1) - 1
        self._seen = ""
        self._sent = 0

    def add(self, piece: str, *, last: bool) -> tuple[str, str | None]:
        """Return the text that is safe to show, and the stop string that ended it."""
        self._seen += piece
        text, stop = _cut(self._call, self._seen)
        until = len(text) if last or stop is not None else max(self._sent, len(text) - self._hold)
        shown, self._sent = text[self._sent : until], max(self._sent, until)
        return shown, stop


class TGIChatReader(OpenAIReader):
    """Reads TGI's chat stream, which shows its stop strings."""

    def __init__(self, call: Call, dialect: TGIDialect) -> None:
        super().__init__(call, dialect)
        self._cutter = _Cutter(call)
        self.ended = False

    def read(self, data: bytes) -> ChatChunk | CompletionChunk | _Done | None:
        """See `ChunkReader.read`."""
        chunk = super().read(data)
        if isinstance(chunk, ChatChunk):
            for choice in chunk.choices:
                last = choice.finish_reason is not None
                text, stop = self._cutter.add(choice.delta.content or "", last=last)
                if text or choice.delta.content:
                    choice.delta.content = text
                choice.finish_reason = _FINISH.get(choice.finish_reason or "", choice.finish_reason)
                if last:
                    choice.stop_reason = None  # said, unless one is found
                if stop is not None:
                    choice.finish_reason, choice.stop_reason = "stop", stop
                    self._finished.add(choice.index)
                    self.ended = not last  # the server would go on
        return chunk


class TGIReader:
    """Reads `/generate_stream`: one token an event, the last with the whole text; there is no `[DONE]`."""

    def __init__(self, call: Call, dialect: TGIDialect) -> None:
        self._call = call
        self._dialect = dialect
        self._cutter = _Cutter(call)
        self._count = 0
        self.complete = self.ended = False

    def read(self, data: bytes) -> CompletionChunk | _Done | None:
        """See `ChunkReader.read`."""
        raw = load_json(data)
        if isinstance(raw, dict) and "error" in raw:
            raise self._error(raw)
        token = raw.get("token") if isinstance(raw, dict) else None
        if not isinstance(token, dict):
            raise InvalidResponseError(f"The event is not TGI's: {short(raw)}.", hint="Is this a TGI server?")
        last = raw.get("generated_text") is not None
        self._count += 1
        piece = "" if token.get("special") else token.get("text") or ""
        text, stop = self._cutter.add(piece, last=last)
        finish = usage = None
        if last or stop is not None:
            self.complete = self.ended = True
            details = raw.get("details") or {}
            finish = "stop" if stop is not None else _finish(details.get("finish_reason"))
            usage = _counts(details.get("input_length") or 0, details.get("generated_tokens") or self._count)
        choice = CompletionChoice(text=text, finish_reason=finish, stop_reason=stop)
        if self._call.params.wanted_logprobs is not None:
            choice.logprobs = Logprobs(content=[_token(token, raw.get("top_tokens"))])
        return CompletionChunk(model=self._call.model, choices=[choice], usage=usage)

    def _error(self, raw: dict[str, Any]) -> APIStatusError:
        words = self._dialect.server_words(raw)
        kind = raw.get("error_type")
        cls = {"validation": error_class_for_status(422), "overloaded": error_class_for_status(429)}.get(
            str(kind), ServerError
        )
        return cls("The server broke the stream off with an error.", server_message=words.message, body=raw)


def _seeds(call: Call) -> list[dict[str, int]]:
    """See `seeds`; TGI's have no sign."""
    return [{name: value % 2**64 for name, value in one.items()} for one in seeds(call, "tgi")]


def _known_stops(call: Call, server: ServerInfo) -> list[str]:
    """Return as many stop strings as the server takes; `_cut` looks for all of them."""
    return (call.params.stop or [])[: server.limits.get("max_stop_sequences", MAX_STOPS)]


def _cut(call: Call, text: str) -> tuple[str, str | None]:
    """Return a text up to its first stop string, and that string; None when it has none."""
    before = call.prompt if call.params.echo and isinstance(call.prompt, str) else ""
    start = len(before) if text.startswith(before) else 0
    found = [
        (place, -len(stop), stop) for stop in call.params.stop or () if (place := text.find(stop, start)) >= 0
    ]
    if not found:
        return text, None
    place, length, stop = min(found)
    return text[: place - length if call.params.include_stop_str_in_output else place], stop


def _grammar(call: Call, name: str, value: Any) -> dict[str, Any] | None:
    """Return TGI's grammar (`GrammarType` in `router/src/lib.rs`) for one of `params.SHAPES`."""
    where = "the chat endpoint" if call.kind == "chat" else "the generate endpoint"
    if name == "regex":
        return {"type": "regex", "value": value}
    if name == "choice":
        return {"type": "regex", "value": f"({'|'.join(map(_literal, value))})"}
    if name == "grammar":
        raise refuse(name, value, "tgi", where, "TGI knows JSON Schema and regular expressions.")
    if name == "response_format":
        if value.get("type") == "text":
            return None
        schema = schema_in(value)
        if schema is None:
            raise refuse(name, value, "tgi", where, "TGI wants a schema.")
        value = schema
    if not isinstance(value, Mapping) or "properties" not in value:
        raise refuse(
            name, value, "tgi", where,
            "TGI takes only schemas of objects with `properties` (`router/src/validation.rs`).",
        )  # fmt: skip
    return {"type": "json", "value": value}


def _literal(text: str) -> str:
    """Return the regular expression of a text, in what Rust's and Python's engines have in common."""
    return re.sub(r"([\\.^$|?*+()\[\]{}])", r"\\\1", text)


def _choice(call: Call, index: int, sequence: dict[str, Any]) -> CompletionChoice:
    text, stop = _cut(call, sequence["generated_text"])
    finish = "stop" if stop is not None else _finish(sequence.get("finish_reason"))
    choice = CompletionChoice(index=index, text=text, finish_reason=finish, stop_reason=stop)
    if call.params.wanted_logprobs is not None and sequence.get("tokens") is not None:
        tops = sequence.get("top_tokens") or [None] * len(sequence["tokens"])
        choice.logprobs = Logprobs(
            content=[_token(token, top) for token, top in zip(sequence["tokens"], tops, strict=True)]
        )
    return choice


def _finish(reason: str | None) -> str | None:
    """Return OpenAI's finish_reason for TGI's."""
    return _FINISH.get(reason or "", reason)


def _token(token: dict[str, Any], top: list[dict[str, Any]] | None) -> TokenLogprob:
    best = [TopLogprob(token=t["text"], logprob=t["logprob"], token_id=t["id"]) for t in top or ()]
    return TokenLogprob(
        token=token["text"], logprob=token["logprob"], token_id=token["id"], top_logprobs=best
    )


def _usage(replies: Sequence[Reply], sequences: Sequence[dict[str, Any]]) -> Usage | None:
    if any("generated_tokens" not in sequence for sequence in sequences):
        return None
    prompt = replies[0].headers.get("x-prompt-tokens", "")
    return _counts(int(prompt) if prompt.isdigit() else 0, sum(int(s["generated_tokens"]) for s in sequences))


def _counts(prompt: int, generated: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)
