"""Send a span for each request of the engine by OpenTelemetry (`--otlp-traces-endpoint`).

The one module that needs the extra `otel`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ..async_engine import AsyncEngine
from ..request import Request, RequestOutput
from .exchange import current

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACE_HEADERS = (b"traceparent", b"tracestate")


def send_to(endpoint: str, version: str) -> TracerProvider:
    """Return a provider that sends spans to an OTLP collector over HTTP, such as http://localhost:4318/v1/traces.

    `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME` and the like are heeded.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    resource = Resource.create({SERVICE_VERSION: version})
    # What the environment says wins, as everywhere in OpenTelemetry.
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "myllm"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider


@dataclass(slots=True)
class _Live:
    """Hold a request that the engine works at; `received` is in seconds of `time.monotonic()`."""

    request: Request
    parent: Context | None
    received: float
    tokens: int = 0
    reasons: dict[int, str] = field(default_factory=dict)


class Tracing:
    """Observe the requests of an engine; see `loop.Observer`.

    Each becomes a span `llm_request`, a child of what the client's `traceparent` names, with the attributes
    of vLLM (vllm/tracing/utils.py) and those of OpenTelemetry's conventions for generative AI. Neither has
    any text of prompt or answer.

    Args:
        provider: makes the spans, and is shut down with `close`.
        engine: whose requests they are.
    """

    def __init__(self, provider: TracerProvider, engine: AsyncEngine) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("myllm_engine")
        self._model = engine.config.model
        self._live: dict[str, _Live] = {}

    def accepted(self, request: Request) -> None:
        """Begin to follow a request."""
        exchange = current.get()
        carrier, received = {}, time.monotonic()
        if exchange is not None:
            received = exchange.started
            carrier = {
                name.decode(): value.decode("latin-1")
                for name, value in exchange.headers
                if name in _TRACE_HEADERS
            }
        parent = _PROPAGATOR.extract(carrier) if carrier else None
        self._live[request.request_id] = _Live(request, parent, received)

    def delivered(self, outputs: Sequence[RequestOutput]) -> None:
        """Count tokens, and write the spans of what has ended."""
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None:
                continue
            for sequence in output.outputs:
                live.tokens += len(sequence.token_ids)
                if sequence.finish_reason is not None:
                    live.reasons[sequence.index] = sequence.finish_reason
            if output.finished:
                del self._live[output.request_id]
                self._write(live, output)

    def lost(self, request_ids: Sequence[str]) -> None:
        """Write the spans of requests that the engine did not bring to their end."""
        for request_id in request_ids:
            live = self._live.pop(request_id, None)
            if live is not None:
                self._write(live, None)

    def close(self) -> None:
        """Send what is left, and end."""
        self._provider.shutdown()

    def _write(self, live: _Live, output: RequestOutput | None) -> None:
        seconds = time.monotonic() - live.received
        span = self._tracer.start_span(
            "llm_request",
            context=live.parent or Context(),
            kind=SpanKind.SERVER,
            attributes=self._attributes(live, output) | {"gen_ai.latency.e2e": seconds},
            start_time=time.time_ns() - int(seconds * 1e9),
        )
        if output is None:
            span.set_status(Status(StatusCode.ERROR, "the engine ended"))
        elif output.error is not None:
            span.set_attribute("error.type", type(output.error).__name__)
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def _attributes(self, live: _Live, output: RequestOutput | None) -> dict[str, Any]:
        request, params = live.request, live.request.params
        prompt = len(request.prompt_token_ids)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "embeddings" if request.pooling else "text_completion",
            "gen_ai.provider.name": "myllm",
            "gen_ai.request.model": request.lora or self._model,
            "gen_ai.response.model": request.lora or self._model,
            "gen_ai.request.id": request.request_id,
            "gen_ai.request.n": params.n,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.usage.prompt_tokens": prompt,
            "gen_ai.usage.input_tokens": prompt,
            "gen_ai.usage.completion_tokens": live.tokens,
            "gen_ai.usage.output_tokens": live.tokens,
            "gen_ai.usage.num_sequences": params.num_sequences,
            "gen_ai.response.finish_reasons": [live.reasons[index] for index in sorted(live.reasons)],
        }
        if params.max_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = params.max_tokens
        return attributes | _latencies(live, output)


def _latencies(live: _Live, output: RequestOutput | None) -> dict[str, float]:
    timings = None if output is None else output.timings
    if timings is None or timings.scheduled is None:
        return {}
    latencies = {"gen_ai.latency.time_in_queue": timings.scheduled - timings.queued}
    if timings.first_token is not None and timings.last_token is not None:
        latencies |= {
            "gen_ai.latency.time_to_first_token": timings.first_token - live.received,
            "gen_ai.latency.time_in_model_prefill": timings.first_token - timings.scheduled,
            "gen_ai.latency.time_in_model_decode": timings.last_token - timings.first_token,
            "gen_ai.latency.time_in_model_inference": timings.last_token - timings.scheduled,
        }
    return latencies
