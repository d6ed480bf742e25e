"""OpenTelemetry: a span and metrics for each call, by the semantic conventions for generative AI.

    with myllm.Client(url, hooks=[OpenTelemetry()]) as client: ...
    myllm.telemetry.instrument()  # or all clients of the process

Names and values are those of the conventions' release 1.41, which is still "in development":
https://github.com/open-telemetry/semantic-conventions/tree/v1.41.0/docs/gen-ai. Where they have no name for a
thing, it begins with `myllm.`. Without an OpenTelemetry SDK the API does nothing, and so does this.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from . import hooks
from ._version import __version__
from .errors import (
    APIStatusError,
    ConnectError,
    InvalidParameterError,
    MissingExtraError,
    MyLLMError,
    RequestTimeoutError,
)
from .hooks import CallRecord, Hook
from .types import Answer, ChatChoice, ChatCompletion, Completion, Response
from .wire import Call, Send

try:
    from opentelemetry import metrics, propagate, trace
except ImportError as exc:
    raise MissingExtraError(
        "OpenTelemetry is not installed.", hint="pip install 'myllm-suite[otel]' brings its API."
    ) from exc

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

_OPERATIONS = {"chat": "chat", "completion": "text_completion", "embedding": "embeddings", "response": "chat"}
"""Where the conventions have no name (tokenize, detokenize), ours stands."""
_PARAMETERS = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "seed": "seed",
    "stop": "stop_sequences",
}
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS = tuple(4**power for power in range(14))


class OpenTelemetry(Hook):
    """A client span for each call, from its first try to its answer (of a stream: to its end), and metrics.

    The span has what was asked (without the text), who answered, the tokens used, and an event for each try
    that failed. Its context goes with the requests, so that the server's own spans become its children.
    Metrics: `gen_ai.client.operation.duration`, `gen_ai.client.operation.time_to_first_chunk` (seconds) and
    `gen_ai.client.token.usage`.
    """

    def __init__(
        self,
        *,
        capture_content: bool | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        """Make a hook.

        Args:
            capture_content: also put the messages or the prompt, the tools and the answers into the span.
                None asks the variable OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT, which says "true"
                or "SPAN_ONLY" if so.
            tracer_provider, meter_provider: in place of the process's own.

        Raises:
            InvalidParameterError: the variable wants the content somewhere else than in spans.
        """
        self.capture_content = _asked_for() if capture_content is None else capture_content
        self._tracer = trace.get_tracer("myllm", __version__, tracer_provider)
        meter = metrics.get_meter("myllm", __version__, meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._first_chunk = meter.create_histogram(
            "gen_ai.client.operation.time_to_first_chunk",
            unit="s",
            description="Time from the request to a stream's first chunk.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )

    def started(self, record: CallRecord) -> None:
        """Start the span, in the caller's context."""
        call = record.call
        operation = _OPERATIONS.get(call.kind, call.kind)
        attributes: dict[str, Any] = {"gen_ai.operation.name": operation, **_asked(call)}
        record.notes[self] = self._tracer.start_span(
            _name(operation, call.model), kind=trace.SpanKind.CLIENT, attributes=attributes
        )

    def headers(self, record: CallRecord) -> Mapping[str, str]:
        """Return the span's context as headers (`traceparent`), by the process's propagators."""
        carrier: dict[str, str] = {}
        if (span := self._span(record)) is not None:
            propagate.inject(carrier, trace.set_span_in_context(span))
        return carrier

    def sending(self, record: CallRecord, send: Send) -> None:
        """Learn the model's name from the request, where the server was asked for it."""
        span, body = self._span(record), send.request.json
        if span is not None and record.call.model is None and isinstance(body, dict) and body.get("model"):
            record.notes[self, "model"] = body["model"]

    def failed(self, record: CallRecord, error: MyLLMError) -> None:
        """Add an event for the try that failed."""
        if (span := self._span(record)) is not None:
            told = {"error.type": _error_type(error), "error.message": self._words(error)}
            span.add_event("myllm.failed_try", {**_where(error.endpoint), **told})

    def first_chunk(self, record: CallRecord) -> None:
        """Tell how long the first chunk took."""
        if (span := self._span(record)) is not None and record.first_chunk is not None:
            took = record.first_chunk - record.started
            span.set_attribute("gen_ai.response.time_to_first_chunk", took)
            self._first_chunk.record(took, self._labels(record), _context(span))

    def ended(self, record: CallRecord) -> None:
        """End the span, and add to the metrics."""
        span = self._span(record)
        if span is None or record.ended is None:
            return
        labels, context = self._labels(record), _context(span)
        span.update_name(_name(labels["gen_ai.operation.name"], labels.get("gen_ai.request.model")))
        span.set_attributes(labels)
        span.set_attributes({"myllm.request_id": record.request_id, "myllm.attempts": record.attempts})
        if record.error is not None:
            span.set_status(trace.Status(trace.StatusCode.ERROR, self._words(record.error)))
            if self.capture_content and record.error.partial is not None:
                span.set_attributes(_said(record.error.partial))
        elif record.answer is None:
            span.set_attribute("myllm.cancelled", True)
        else:
            span.set_attributes(_answered(record.answer))
            for kind, count in _usage(record.answer):
                if count and not record.answer.cached:
                    self._tokens.record(count, {**labels, "gen_ai.token.type": kind}, context)
        if self.capture_content and span.is_recording():
            span.set_attributes(_content(record.call))
            if record.answer is not None:
                span.set_attributes(_said(record.answer))
        self._duration.record(record.ended - record.started, labels, context)
        span.end()

    def _span(self, record: CallRecord) -> trace.Span | None:
        # Questions about the server alone (`client.models()`) are no calls: they were not started.
        span: trace.Span | None = record.notes.get(self)
        return span

    def _words(self, error: MyLLMError) -> str:
        # A server's words, and those about its answer, may repeat the user's text.
        harmless = isinstance(error, ConnectError | RequestTimeoutError)
        return str(error) if harmless or self.capture_content else type(error).__name__

    def _labels(self, record: CallRecord) -> dict[str, Any]:
        """Return what tells calls apart in metrics, and is known of a call by now."""
        call, answer = record.call, record.answer
        labels: dict[str, Any] = {
            "gen_ai.operation.name": _OPERATIONS.get(call.kind, call.kind),
            "gen_ai.provider.name": record.server.dialect if record.server is not None else "myllm",
            **_where(record.endpoint),
        }
        if model := call.model or record.notes.get((self, "model")):
            labels["gen_ai.request.model"] = model
        if answer is not None and answer.model:
            labels["gen_ai.response.model"] = answer.model
        if record.error is not None:
            labels["error.type"] = _error_type(record.error)
        return labels


_instrumented: OpenTelemetry | None = None


def instrument(**options: Any) -> OpenTelemetry:
    """Let every client of this process report, those made earlier too; returns the hook.

    A second call replaces the first one's hook. The options are those of `OpenTelemetry`.
    """
    global _instrumented
    hook = OpenTelemetry(**options)
    uninstrument()
    hooks.everywhere = (*hooks.everywhere, hook)
    _instrumented = hook
    return hook


def uninstrument() -> None:
    """Undo `instrument`; calls on their way end their spans."""
    global _instrumented
    hooks.everywhere = tuple(hook for hook in hooks.everywhere if hook is not _instrumented)
    _instrumented = None


def _asked_for() -> bool:
    """Return what the environment says about content."""
    value = os.environ.get(CAPTURE_VARIABLE, "").strip().lower()
    if value in ("", "false", "0", "no_content"):
        return False
    if value in ("true", "1", "span_only"):
        return True
    raise InvalidParameterError(
        f"{CAPTURE_VARIABLE}={value.upper()!r}: content goes into spans here, so it must be SPAN_ONLY or "
        "NO_CONTENT, or else overridden by `capture_content=`.",
        param="capture_content",
    )


def _name(operation: str, model: str | None) -> str:
    return f"{operation} {model}" if model else operation


def _context(span: trace.Span) -> Any:
    """Return a context for measurements, by which exemplars find the span."""
    return trace.set_span_in_context(span)


def _where(endpoint: str | None) -> dict[str, Any]:
    if endpoint is None:
        return {}
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or "", "server.port": port}


def _error_type(error: MyLLMError) -> str:
    """Return an error's low-cardinality name: the HTTP status, "timeout", or the exception's class."""
    if isinstance(error, APIStatusError) and error.status is not None:
        return str(error.status)
    return "timeout" if isinstance(error, RequestTimeoutError) else type(error).__name__


def _asked(call: Call) -> dict[str, Any]:
    """Return what a call asks for, without its text."""
    params = call.params
    asked: dict[str, Any] = {}
    for name, attribute in _PARAMETERS.items():
        if (value := getattr(params, name)) is not None:
            asked[f"gen_ai.request.{attribute}"] = value
    if params.n is not None and params.n != 1:
        asked["gen_ai.request.choice.count"] = params.n
    if params.json_schema is not None or (params.response_format or {}).get("type", "text") != "text":
        asked["gen_ai.output.type"] = "json"
    if call.model is not None:
        asked["gen_ai.request.model"] = call.model
    if call.session is not None:
        asked["gen_ai.conversation.id"] = call.session
    if call.stream:
        asked["gen_ai.request.stream"] = True
    return asked


def _answered(answer: Answer) -> dict[str, Any]:
    """Return what is to be said of an answer, without its text."""
    told: dict[str, Any] = {f"gen_ai.usage.{kind}_tokens": count for kind, count in _usage(answer)}
    if answer.id:
        told["gen_ai.response.id"] = answer.id
    if isinstance(answer, ChatCompletion | Completion):
        told["gen_ai.response.finish_reasons"] = [choice.finish_reason or "" for choice in answer.choices]
    if answer.cached:
        told["myllm.cached"] = True
    return told


def _usage(answer: Answer) -> Iterator[tuple[str, int]]:
    if answer.usage is not None:
        yield "input", answer.usage.prompt_tokens
        if isinstance(answer, ChatCompletion | Completion | Response):
            yield "output", answer.usage.completion_tokens


def _content(call: Call) -> dict[str, str]:
    """Return the user's text, in the form of the conventions' JSON schemas."""
    if call.messages is not None:
        messages = [_message(message) for message in call.messages]
    elif isinstance(call.prompt, str):
        messages = [{"role": "user", "parts": [_text(call.prompt)]}]
    else:
        messages = []  # token ids, or the texts of an embedding, for which the conventions have no place
    content = {"gen_ai.input.messages": _json(messages)} if messages else {}
    if call.params.tools:
        content["gen_ai.tool.definitions"] = _json(call.params.tools)
    return content


def _said(answer: Answer) -> dict[str, str]:
    """Return an answer's text."""
    if not isinstance(answer, ChatCompletion | Completion):
        return {}
    messages = []
    for choice in answer.choices:
        if isinstance(choice, ChatChoice):
            message = _message(choice.message.model_dump(exclude_none=True))
        else:
            message = {"role": "assistant", "parts": [_text(choice.text)]}
        messages.append({**message, "finish_reason": choice.finish_reason or ""})
    return {"gen_ai.output.messages": _json(messages)}


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat message of OpenAI's form in that of the conventions."""
    parts: list[Any] = []
    if message.get("reasoning"):
        parts.append({"type": "reasoning", "content": message["reasoning"]})
    content = message.get("content")
    if message.get("role") == "tool":
        parts.append({"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content})
    elif isinstance(content, str):
        parts += [_text(content)] if content else []
    else:
        for part in content or ():
            is_text = isinstance(part, Mapping) and isinstance(part.get("text"), str)
            # A part of no known form is shown as it is.
            parts.append(_text(part["text"]) if is_text and part.get("type") == "text" else part)
    for call in message.get("tool_calls") or ():
        function = call.get("function", {})
        parts.append(
            {
                "type": "tool_call",
                "id": call.get("id"),
                "name": function.get("name"),
                "arguments": _arguments(function.get("arguments")),
            }
        )
    return {"role": message.get("role", "assistant"), "parts": parts}


def _arguments(text: Any) -> Any:
    """Return a tool call's arguments as JSON, or as the model wrote them where that is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
