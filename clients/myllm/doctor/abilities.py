"""What the server can do: each ability is tried, with a request of a few tokens.

A server is not believed: many read a field, ignore it, and answer 200 (vllm#53975, LocalAI#10339).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..client import Client
from ..errors import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConstraintNotEnforced,
    ContextLengthError,
    MyLLMError,
    NotFoundError,
    OverloadedError,
    RateLimitError,
    UnsupportedFeatureError,
    ValidationError,
)
from ..types import ChatCompletion, Completion
from ..wire import ServerInfo
from .report import Finding, Status, failure

_TOKENS = 48
"""Enough for any answer that obeys one of the constraints below, and too few to cost much."""
_AT_ONCE = 0.0005
"""Seconds between chunks below which they were not sent one by one: no model is that fast."""
_TOO_MANY = 10_000_000
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Tell the time in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True, slots=True)
class Patient:
    """The server as the probes meet it; `chats` says whether conversations work, else prompts are used."""

    client: Client
    info: ServerInfo
    chats: bool

    def ask(self, words: str, **options: Any) -> ChatCompletion | Completion:
        """Generate once."""
        call = self.client.chat if self.chats else self.client.complete
        answer: ChatCompletion | Completion = call(words, **options)
        return answer


@dataclass(frozen=True, slots=True)
class Saw:
    """What a probe saw."""

    summary: str
    status: Status = "ok"
    advice: str | None = None


Probe = Callable[[Patient], Saw]


def look_at_abilities(client: Client, info: ServerInfo) -> Iterator[Finding]:
    """Yield what the server can do, beginning with whether it does anything at all."""
    chats = tried("chat", _chat, Patient(client, info, True))
    yield chats
    completes = tried("completion", _completion, Patient(client, info, False))
    yield completes
    patient = Patient(client, info, chats.status == "ok")
    embeds = tried("embeddings", _embeddings, patient)
    yield embeds
    if chats.status != "ok" and completes.status != "ok":
        if embeds.status != "ok":
            yield Finding(
                check="use",
                section="Abilities",
                status="problem",
                summary="it neither chats nor completes nor embeds",
                advice="Is the URL an LLM server's root, and the model's name right? See what it said above.",
            )
        return
    probes = _PROBES | (_CHAT_PROBES if patient.chats else {})
    for name, probe in probes.items():
        yield tried(name, probe, patient)


def tried(check: str, probe: Probe, patient: Patient) -> Finding:
    """Run a probe; an error is a finding, too."""
    start = time.monotonic()
    try:
        saw = probe(patient)
    except MyLLMError as exc:
        return _failed(check, exc)
    return Finding(
        check=check,
        section="Abilities",
        status=saw.status,
        summary=saw.summary,
        advice=saw.advice,
        seconds=time.monotonic() - start,
    )


def _failed(check: str, error: MyLLMError) -> Finding:
    if isinstance(error, UnsupportedFeatureError):
        words = error.message.replace(", so nothing was sent", "")
        words = re.sub(r"^`(\w+)=.*`: ", r"`\1`: ", words, flags=re.DOTALL)  # without the probe's own value
        return Finding(check=check, section="Abilities", status="absent", summary=words, advice=error.hint)
    if isinstance(error, NotFoundError) or error.status in (405, 501):
        missing = "model" not in (error.server_message or "").lower()
        if missing:
            summary = f"no such endpoint (status {error.status})"
            return Finding(check=check, section="Abilities", status="absent", summary=summary)
        return failure(check, "Abilities", error)
    off = check == "embeddings" and "embedding" in (error.server_message or "")  # llama-cpp-python's 500
    if off or isinstance(error, BadRequestError | ValidationError):
        return failure(check, "Abilities", error, status="absent")
    if isinstance(error, RateLimitError | OverloadedError):
        return failure(check, "Abilities", error, status="warning", advice="Not seen: it has no room now.")
    return failure(check, "Abilities", error)


def _chat(patient: Patient) -> Saw:
    answer = patient.ask("Hello", max_tokens=1)
    return Saw("answers" + _counted(answer))


def _completion(patient: Patient) -> Saw:
    answer = patient.ask("Hello", max_tokens=1)
    return Saw("continues a prompt" + _counted(answer))


def _counted(answer: ChatCompletion | Completion) -> str:
    if answer.usage is None:
        return ", without counting its tokens (no `usage`)"
    return f" ({answer.usage.prompt_tokens} tokens read, {answer.usage.completion_tokens} written)"


def _embeddings(patient: Patient) -> Saw:
    (vector,) = patient.client.embed("Hello").vectors
    return Saw(f"vectors of {len(vector)} numbers")


def _streaming(patient: Patient) -> Saw:
    call = patient.client.stream_chat if patient.chats else patient.client.stream_complete
    start = time.monotonic()
    times: list[float] = []
    with call("Count from one to twenty.", max_tokens=16, temperature=0) as stream:
        for chunk in stream:
            if chunk.choices:
                times.append(time.monotonic() - start)
    usage = stream.final().usage
    written = usage.completion_tokens if usage else len(times)
    if not times:
        return Saw("a stream without a single token", "problem", "Look at the server's log.")
    gap = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    if written >= 4 and (len(times) < 3 or gap < _AT_ONCE):
        return Saw(
            f"all {written} tokens came at once, after {times[0]:.2f} s",
            "warning",
            "A proxy between here and the server collects the stream: switch its buffering off "
            "(nginx: `proxy_buffering off`).",
        )
    rate = f", then one every {gap * 1000:.0f} ms" if gap else ""
    return Saw(f"the first chunk after {times[0]:.2f} s{rate}")


def _tokenize(patient: Patient) -> Saw:
    tokens = patient.client.tokenize("The quick brown fox.")
    return Saw(f"counts ({tokens.count} tokens in 'The quick brown fox.')")


def _logprobs(patient: Patient) -> Saw:
    wanted = {"logprobs": True, "top_logprobs": 2} if patient.chats else {"logprobs": 2}
    answer = patient.ask("Hello", max_tokens=1, temperature=0, **wanted)
    told = answer.choices[0].logprobs
    if told is None or not told.content:
        return Saw("asked for, accepted, and not in the answer", "problem", "Do not rely on them here.")
    return Saw(f"of the token and {len(told.content[0].top_logprobs)} alternatives")


# --- constraints -------------------------------------------------------------------------------------------

_SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def _is_json(text: str) -> bool:
    try:
        return list(json.loads(text)) == ["ok"]
    except (ValueError, TypeError):
        return False


def _words(text: str) -> bool:
    return text in ("qux", "zap")


# What to ask for, who obeys it, and how an answer begins that could still come to obey it.
_CONSTRAINTS: Mapping[str, tuple[Any, Callable[[str], bool], re.Pattern[str] | None]] = {
    "json_schema": (_SCHEMA, _is_json, re.compile(r"\s*(\{|$)")),
    "regex": ("[0-9]{4}-[0-9]{2}", lambda text: bool(re.fullmatch("[0-9]{4}-[0-9]{2}", text)), None),
    "choice": (["qux", "zap"], _words, None),
    "grammar": ('root ::= "qux" | "zap"', _words, None),
}


def _constraint(name: str) -> Probe:
    value, obeys, could_become = _CONSTRAINTS[name]

    def probe(patient: Patient) -> Saw:
        reasoning = None
        try:
            answer = patient.ask("Say hello.", max_tokens=_TOKENS, temperature=0, **{name: value})
        except ConstraintNotEnforced as exc:
            text, hint = exc.text, exc.hint
        else:
            text, hint = answer.text, None
            if isinstance(answer, ChatCompletion):
                reasoning = answer.message.reasoning
        if obeys(text):
            return Saw(f"enforced: {text!r}")
        if (not text and reasoning) or (text and could_become is not None and could_become.match(text)):
            return Saw(
                f"not to be told from {_TOKENS} tokens: {text[:40]!r}", "warning", "Look at an answer."
            )
        return Saw(
            f"accepted and ignored: the answer is {text[:40]!r}",
            "problem",
            hint or "Do not rely on it here: the server reads the field and does nothing.",
        )

    return probe


# --- the rest ----------------------------------------------------------------------------------------------


def _several(patient: Patient) -> Saw:
    count = len(patient.ask("Hello", max_tokens=1, n=2).choices)
    if count != 2:
        return Saw(f"asked for 2 answers, got {count}", "problem", "Make a call for each answer.")
    return Saw("several answers to one call")


def _seed(patient: Patient) -> Saw:
    drawn = {patient.ask("Say any word.", max_tokens=8, temperature=1, seed=7).text for _ in range(2)}
    if len(drawn) == 1:
        return Saw("one seed gives one answer")
    return Saw("one seed gave two answers", "warning", "Do not count on seeds here; temperature 0 may help.")


def _unknown_field(patient: Patient) -> Saw:
    try:
        patient.ask("Hello", max_tokens=1, extra_body={"myllm_doctor_no_such_field": 1})
    except (BadRequestError, ValidationError):
        return Saw("refused")
    return Saw(
        "ignored without a word",
        "warning",
        "A misspelt field of `extra_body` is lost here; the SDK's own parameters are checked by name.",
    )


def _overflow(patient: Patient) -> Saw:
    call = patient.client.stream_chat if patient.chats else patient.client.stream_complete
    try:
        # A stream, to be hung up at once by the server that takes it: its answer could be endless.
        with call("Hello", max_tokens=_TOO_MANY) as stream:
            next(stream, None)
    except ContextLengthError as exc:
        return Saw("refused" + (f", naming the limit of {exc.limit} tokens" if exc.limit else ""))
    except APIStatusError as exc:
        if isinstance(exc, AuthenticationError) or exc.status is None or exc.status >= 500:
            raise
        return Saw(f"refused (status {exc.status})")
    return Saw(
        f"max_tokens={_TOO_MANY} is accepted",
        "warning",
        "The server shortens what does not fit without a word: look at `finish_reason`.",
    )


def _system_role(patient: Patient) -> Saw:
    return _roles(patient, ("system", "user"), "system messages are taken", "merge_system")


def _alternation(patient: Patient) -> Saw:
    return _roles(patient, ("user", "user"), "two messages of one role are taken", "alternate")


def _roles(patient: Patient, roles: tuple[str, ...], fine: str, policy: str) -> Saw:
    try:
        patient.client.chat([{"role": role, "content": "Be brief."} for role in roles], max_tokens=1)
    except APIStatusError as exc:
        if exc.status is None or exc.status in (401, 403, 429, 502, 503, 504):
            raise
        return Saw(
            f"refused (status {exc.status}: {exc.server_message})",
            "warning",
            f'The model\'s chat template is strict: `message_policy="{policy}"` sends what it takes.',
        )
    return Saw(fine)


def _tools(patient: Patient) -> Saw:
    answer = patient.client.chat(
        "What time is it in Paris? Use the tool.", max_tokens=_TOKENS, temperature=0, tools=[_TOOL]
    )
    if answer.message.tool_calls:
        return Saw("calls a tool")
    if re.search(r"get_time|<tool_call>", answer.text):
        return Saw(
            "the model wrote its call as text, and the server did not recognise it",
            "warning",
            "Is the server's tool parser the model's own (`--tool-call-parser`)?",
        )
    return Saw("accepted; the model did not call one")


_PROBES: dict[str, Probe] = {
    "streaming": _streaming,
    "tokenize": _tokenize,
    "logprobs": _logprobs,
    **{name: _constraint(name) for name in _CONSTRAINTS},
    "n": _several,
    "seed": _seed,
    "unknown field": _unknown_field,
    "max_tokens": _overflow,
}
_CHAT_PROBES: dict[str, Probe] = {
    "system role": _system_role,
    "alternation": _alternation,
    "tools": _tools,
}
