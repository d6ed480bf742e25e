"""Text Generation Inference: `/generate` and `/generate_stream` for prompts, its OpenAI route for chat.

Wire format: TGI's published OpenAPI document (v3), and its validation rules
(`router/src/validation.rs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import APIStatusError, InvalidResponseError, ServerError, error_class_for_status, short
from ..types import (
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
from .openai import OpenAIDialect

MAX_BEST_OF = 2
"""TGI's default `--max-best-of`: more sequences than this take requests of their own."""

_NAMES = {
    "max_tokens": "max_new_tokens",
    "top_k": "top_k",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
    "truncate_prompt_tokens": "truncate",
    "echo": "return_full_text",
}
_HANDLED = frozenset(
    {"temperature", "top_p", "n", "best_of", "seed", "logprobs", "top_logprobs", "include_stop_str_in_output",
     "user"}
)  # fmt: skip
_FINISH = {"length": "length", "eos_token": "stop", "stop_sequence": "stop"}


class TGIDialect(OpenAIDialect):
    """TGI's own words for prompts. TGI keeps the stop text in its answer; here it is cut off.

    `include_stop_str_in_output=True` keeps it.
    """

    name = "tgi"
    # TGI's chat route reads `logit_bias` and ignores it, takes `presence_penalty` for another one, and has
    # a `response_format` of its own.
    chat_params = OpenAIDialect.chat_params - {
        "reasoning_effort",
        "parallel_tool_calls",
        "logit_bias",
        "presence_penalty",
        "response_format",
    }

    def requests(self, call: Call, server: ServerInfo) -> list[WireRequest]:
        """See `Dialect.requests`. `n` becomes `best_of` where TGI can, else `n` requests, seed by seed."""
        if call.kind == "chat":
            (request,) = super().requests(call, server)
            request.json.pop("n", None)  # TGI reads it and ignores it
            return [replace(request, json={**request.json, **seed}) for seed in self._seeds(call)]
        if not isinstance(call.prompt, str):
            raise refuse("prompt", call.prompt, self.name, "the generate endpoint", "TGI takes text only.")
        parameters = self._parameters(call)
        variants = self._variants(call, sampled=parameters["do_sample"])
        path = "/generate_stream" if call.stream else "/generate"
        return [
            WireRequest(
                method="POST",
                path=path,
                json={"inputs": call.prompt, "parameters": {**parameters, **extra}, **call.extra_body},
            )
            for extra in variants
        ]

    def _variants(self, call: Call, sampled: bool) -> list[dict[str, Any]]:
        """Return what sets each of the call's requests apart."""
        n, seed = call.params.n or 1, call.params.seed
        best_of = max(n, call.params.best_of or 1)
        # TGI takes best_of only when it samples, and not together with a seed.
        can = sampled and seed is None and best_of <= MAX_BEST_OF
        if best_of > n and not can:
            raise refuse(
                "best_of", best_of, self.name, "the generate endpoint",
                f"TGI wants it to be at most {MAX_BEST_OF}, with sampling and without a seed.",
            )  # fmt: skip
        return [{"best_of": best_of}] if best_of > 1 and can and not call.stream else self._seeds(call)

    def _seeds(self, call: Call) -> list[dict[str, Any]]:
        """Return one entry for each of the `n` requests, each with a seed of its own if one was given."""
        n, seed = call.params.n or 1, call.params.seed
        if call.stream and n > 1:
            raise refuse("n", n, self.name, "the stream", "Open one stream for each answer.")
        return [{} if seed is None else {"seed": seed + i} for i in range(n)]

    def _parameters(self, call: Call) -> dict[str, Any]:
        wanted = effective(call.params)
        greedy = wanted.get("temperature") == 0
        out: dict[str, Any] = {"details": True}
        for name, value in wanted.items():
            if name in _HANDLED:
                continue
            if name == "response_format":
                out["grammar"] = _grammar(value)
                continue
            if name not in _NAMES:
                raise refuse(name, value, self.name, "the generate endpoint")
            if greedy and name in ("top_k", "typical_p"):
                continue  # Nothing is drawn, so nothing is to be filtered; TGI would take them as "sample".
            out[_NAMES[name]] = value
        if not greedy:
            out.update({name: wanted[name] for name in ("temperature", "top_p") if name in wanted})
        # TGI samples when any of these is set (a `parameters` object alone means greedy).
        out["do_sample"] = not greedy and any(
            k in out for k in ("temperature", "top_p", "top_k", "typical_p")
        )
        if call.params.wanted_logprobs:
            out["top_n_tokens"] = call.params.wanted_logprobs
        return out

    def answer(self, call: Call, replies: Sequence[Reply]) -> ChatCompletion | Completion:
        """See `Dialect.answer`."""
        if call.kind == "chat":
            return _merged([super(TGIDialect, self).answer(call, [reply]) for reply in replies])
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

    def reader(self, call: Call) -> ChunkReader:
        """See `Dialect.reader`."""
        return super().reader(call) if call.kind == "chat" else TGIReader(call, self)


class TGIReader:
    """Reads `/generate_stream`: one token an event, the last with the whole text; there is no `[DONE]`."""

    def __init__(self, call: Call, dialect: TGIDialect) -> None:
        self._call = call
        self._dialect = dialect
        keep = call.params.include_stop_str_in_output
        self._stops = [] if keep else list(call.params.stop or ())
        self._hold = max(map(len, self._stops), default=1) - 1
        self._seen = ""
        self._sent = 0
        self.complete = self.ended = False

    def read(self, data: bytes) -> CompletionChunk | _Done | None:
        """See `ChunkReader.read`."""
        raw = load_json(data)
        if isinstance(raw, dict) and "error" in raw:
            raise self._error(raw)
        token = raw.get("token") if isinstance(raw, dict) else None
        if not isinstance(token, dict):
            raise InvalidResponseError(f"The event is not TGI's: {short(raw)}.", hint="Is this a TGI server?")
        final = raw.get("generated_text")
        if not token.get("special"):
            self._seen += token.get("text") or ""
        if final is None:
            until = max(self._sent, len(self._seen) - self._hold)
            finish = stop_reason = usage = None
        else:
            self.complete = self.ended = True
            details = raw.get("details") or {}
            finish, stop_reason, text = _finish(self._stops, details.get("finish_reason"), self._seen)
            until = max(self._sent, len(text))
            usage = _counts(
                details.get("input_length") or 0, details.get("generated_tokens") or raw.get("index") or 0
            )
        text, self._sent = self._seen[self._sent : until], until
        choice = CompletionChoice(text=text, finish_reason=finish, stop_reason=stop_reason)
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


def _grammar(response_format: dict[str, Any]) -> dict[str, Any]:
    """Return TGI's `grammar` for OpenAI's `response_format`."""
    schema = (response_format.get("json_schema") or {}).get("schema")
    if response_format.get("type") != "json_schema" or schema is None:
        raise refuse(
            "response_format", response_format, "tgi", "the generate endpoint", "TGI wants a schema."
        )
    return {"type": "json", "value": schema}


def _merged(answers: list[ChatCompletion | Completion]) -> ChatCompletion | Completion:
    """Join the answers of `n` requests into one with `n` choices."""
    first = answers[0]
    if len(answers) == 1:
        return first
    assert isinstance(first, ChatCompletion)
    choices = [choice for answer in answers for choice in answer.choices]
    merged = ChatCompletion(
        id=first.id,
        created=first.created,
        model=first.model,
        choices=[choice.model_copy(update={"index": i}) for i, choice in enumerate(choices)],
    )
    if all(answer.usage for answer in answers):
        merged.usage = _counts(
            first.usage.prompt_tokens if first.usage else 0,
            sum(answer.usage.completion_tokens for answer in answers if answer.usage),
        )
    merged._raw = [answer.raw for answer in answers]
    return merged


def _choice(call: Call, index: int, sequence: dict[str, Any]) -> CompletionChoice:
    stops = [] if call.params.include_stop_str_in_output else call.params.stop or []
    finish, stop_reason, text = _finish(stops, sequence.get("finish_reason"), sequence["generated_text"])
    choice = CompletionChoice(index=index, text=text, finish_reason=finish, stop_reason=stop_reason)
    if call.params.wanted_logprobs is not None and sequence.get("tokens") is not None:
        tops = sequence.get("top_tokens") or [None] * len(sequence["tokens"])
        choice.logprobs = Logprobs(
            content=[_token(token, top) for token, top in zip(sequence["tokens"], tops, strict=True)]
        )
    return choice


def _finish(stops: Sequence[str], reason: str | None, text: str) -> tuple[str | None, str | None, str]:
    """Return OpenAI's finish_reason, the stop string that ended the text, and the text without it."""
    if reason == "stop_sequence":
        for stop in sorted(stops, key=len, reverse=True):
            if text.endswith(stop):
                return "stop", stop, text[: -len(stop)]
    return _FINISH.get(reason or "", reason), None, text


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
