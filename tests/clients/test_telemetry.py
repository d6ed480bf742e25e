"""OpenTelemetry: what the real SDK's exporters are given, against the GenAI semantic conventions."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import subprocess
import sys
import time

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
from opentelemetry.trace import SpanKind, StatusCode

import myllm
from myllm import hooks
from myllm.telemetry import CAPTURE_VARIABLE, OpenTelemetry, instrument, uninstrument


class Telemetry:
    """The exporters, and a hook that reports to them."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def hook(self, **options) -> OpenTelemetry:
        return OpenTelemetry(tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    @property
    def span(self):
        (span,) = self.spans
        return span

    def points(self, name: str) -> list:
        data = self.reader.get_metrics_data()
        found = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics] if data else []
        return [point for metric in found if metric.name == name for point in metric.data.data_points]


@pytest.fixture
def telemetry():
    return Telemetry()


def client(wire, telemetry, *, capture_content=None, **options) -> myllm.Client:
    options = {"model": "m", "dialect": "vllm", "max_retries": 0, **options}
    return myllm.Client(wire.url, hooks=[telemetry.hook(capture_content=capture_content)], **options)


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


def answer(**message) -> dict:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi.", **message},
        "finish_reason": "stop",
    }
    return {"id": "chatcmpl-1", "created": 1, "model": "m-real", "choices": [choice], "usage": USAGE}


def event(text: str, reason: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return f"data: {json.dumps({'id': 'c1', 'created': 1, 'model': 'm-real', 'choices': [choice]})}\n\n"


END = (
    event("", "stop")
    + f"data: {json.dumps({'id': 'c1', 'model': 'm-real', 'choices': [], 'usage': USAGE})}\n\ndata: [DONE]\n\n"
)


def test_a_chat_has_a_span_by_the_conventions(wire, telemetry):
    wire.answers(answer())
    with client(wire, telemetry) as asking:
        told = asking.chat("Hello", temperature=0.5, max_tokens=9, stop="x", seed=4, n=1, session="s1")
    span = telemetry.span
    assert (span.name, span.kind, span.status.status_code) == ("chat m", SpanKind.CLIENT, StatusCode.UNSET)
    assert span.instrumentation_scope.name == "myllm"
    assert dict(span.attributes) == {
        names.GEN_AI_OPERATION_NAME: names.GenAiOperationNameValues.CHAT.value,
        names.GEN_AI_PROVIDER_NAME: "vllm",
        names.GEN_AI_REQUEST_MODEL: "m",
        names.GEN_AI_REQUEST_TEMPERATURE: 0.5,
        names.GEN_AI_REQUEST_MAX_TOKENS: 9,
        names.GEN_AI_REQUEST_STOP_SEQUENCES: ("x",),
        names.GEN_AI_REQUEST_SEED: 4,
        names.GEN_AI_CONVERSATION_ID: "s1",
        names.GEN_AI_RESPONSE_MODEL: "m-real",
        names.GEN_AI_RESPONSE_ID: "chatcmpl-1",
        names.GEN_AI_RESPONSE_FINISH_REASONS: ("stop",),
        names.GEN_AI_USAGE_INPUT_TOKENS: 7,
        names.GEN_AI_USAGE_OUTPUT_TOKENS: 3,
        "server.address": "127.0.0.1",
        "server.port": wire.port,
        "myllm.request_id": told.request_id,
        "myllm.attempts": 1,
    }


def test_a_chat_is_measured(wire, telemetry):
    wire.answers(answer())
    with client(wire, telemetry) as asking:
        for _ in range(2):
            asking.chat("Hello")
    common = {
        names.GEN_AI_OPERATION_NAME: "chat",
        names.GEN_AI_PROVIDER_NAME: "vllm",
        names.GEN_AI_REQUEST_MODEL: "m",
        names.GEN_AI_RESPONSE_MODEL: "m-real",
        "server.address": "127.0.0.1",
        "server.port": wire.port,
    }
    (duration,) = telemetry.points("gen_ai.client.operation.duration")
    took = [(span.end_time - span.start_time) / 1e9 for span in telemetry.spans]
    assert dict(duration.attributes) == common
    assert duration.count == 2
    assert duration.sum == pytest.approx(sum(took), abs=0.05)
    assert duration.explicit_bounds[:3] == (0.01, 0.02, 0.04)
    tokens = {
        point.attributes[names.GEN_AI_TOKEN_TYPE]: point
        for point in telemetry.points("gen_ai.client.token.usage")
    }
    assert {kind: point.sum for kind, point in tokens.items()} == {"input": 14, "output": 6}
    assert dict(tokens["input"].attributes) == {**common, names.GEN_AI_TOKEN_TYPE: "input"}
    assert tokens["input"].explicit_bounds[:4] == (1, 4, 16, 64)
    assert not telemetry.points("gen_ai.client.operation.time_to_first_chunk")


def test_the_other_kinds_of_call(wire, telemetry):
    completion = {
        "id": "c",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "text": "b", "finish_reason": "length"}],
    }
    vectors = {
        "data": [{"index": 0, "embedding": [0.5]}],
        "model": "m",
        "usage": {"prompt_tokens": 5, "total_tokens": 5},
    }
    wire.answers(completion, vectors, {"tokens": [1, 2], "count": 2, "max_model_len": 8})
    with client(wire, telemetry) as asking:
        asking.complete("a", n=2)
        asking.embed("a")
        asking.tokenize("a")
    completed, embedded, tokenized = telemetry.spans
    assert (completed.name, embedded.name, tokenized.name) == (
        "text_completion m",
        "embeddings m",
        "tokenize m",
    )
    assert completed.attributes[names.GEN_AI_REQUEST_CHOICE_COUNT] == 2
    assert completed.attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert embedded.attributes[names.GEN_AI_USAGE_INPUT_TOKENS] == 5
    assert names.GEN_AI_USAGE_OUTPUT_TOKENS not in embedded.attributes


def test_the_server_sees_the_trace(wire, telemetry):
    wire.answers(answer())
    tracer = telemetry.tracers.get_tracer("application")
    with client(wire, telemetry) as asking, tracer.start_as_current_span("request") as outer:
        asking.chat("Hello")
    span = next(span for span in telemetry.spans if span.name == "chat m")
    trace_id, span_id = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
    *ids, flags = wire.seen[0].headers["traceparent"].split("-")
    assert ids == ["00", trace_id, span_id]
    assert int(flags, 16) & 1  # sampled
    assert span.parent.span_id == outer.get_span_context().span_id


def test_a_model_that_the_server_names(server, telemetry):
    with myllm.Client(server.url, hooks=[telemetry.hook()], max_tokens=4) as asking:
        asking.chat("Hello")
        asking.models()
    assert telemetry.span.name == "chat smollm2"
    assert telemetry.span.attributes[names.GEN_AI_REQUEST_MODEL] == "smollm2"
    assert telemetry.span.attributes[names.GEN_AI_PROVIDER_NAME] == "vllm"
    assert telemetry.span.attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 4


def test_retries_are_events_of_one_span(wire, telemetry):
    statuses = [503, 429, 200]

    def handler(seen, reply):
        status = statuses.pop(0)
        reply.json(
            answer() if status == 200 else {"error": {"message": "busy"}}, status, {"Retry-After": "0"}
        )

    wire.handler = handler
    with client(wire, telemetry, max_retries=2) as asking:
        asking.chat("Hello")
    span = telemetry.span
    assert span.attributes["myllm.attempts"] == 3
    assert [(event.name, event.attributes["error.type"]) for event in span.events] == [
        ("myllm.failed_try", "503"),
        ("myllm.failed_try", "429"),
    ]
    assert span.status.status_code == StatusCode.UNSET
    assert len({seen.headers["traceparent"] for seen in wire.seen}) == 1


def test_failover_names_the_server_that_answered(wire, free_port, telemetry):
    wire.answers(answer())
    urls = [f"http://127.0.0.1:{free_port}", wire.url]
    with myllm.Client(urls, model="m", dialect="vllm", hooks=[telemetry.hook()]) as asking:
        asking.chat("Hello")
    span = telemetry.span
    assert span.attributes["server.port"] == wire.port
    assert [event.attributes["server.port"] for event in span.events] == [free_port]
    assert "refused" in span.events[0].attributes["error.message"]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [(400, {"error": {"message": "SECRET WORDS"}}, "400"), (200, {"nonsense": 1}, "InvalidResponseError")],
)
def test_errors(wire, telemetry, status, body, kind):
    wire.handler = lambda seen, reply: reply.json(body, status)
    with client(wire, telemetry) as asking, pytest.raises(myllm.MyLLMError):
        asking.chat("Hello")
    span = telemetry.span
    assert span.status.status_code == StatusCode.ERROR
    assert span.attributes["error.type"] == kind
    assert "SECRET" not in span.to_json()
    (duration,) = telemetry.points("gen_ai.client.operation.duration")
    assert duration.attributes["error.type"] == kind
    assert not telemetry.points("gen_ai.client.token.usage")


def test_a_timeout_is_called_one(wire, telemetry):
    wire.handler = lambda seen, reply: time.sleep(0.5)
    with (
        client(wire, telemetry, timeout=myllm.Timeout(first_byte=0.1)) as asking,
        pytest.raises(myllm.RequestTimeoutError),
    ):
        asking.chat("Hello")
    assert telemetry.span.attributes["error.type"] == "timeout"
    assert "silent for 0.1 s" in telemetry.span.status.description


def test_a_stream_has_one_span_until_its_end(wire, telemetry):
    wire.streams(event("a"), event("b"), END)
    with client(wire, telemetry) as asking, asking.stream_chat("Hello") as stream:
        next(stream)
        assert not telemetry.spans
        assert stream.final().text == "ab"
        span = telemetry.span
    attributes = span.attributes
    assert attributes[names.GEN_AI_REQUEST_STREAM] is True
    assert attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 3
    assert attributes[names.GEN_AI_RESPONSE_FINISH_REASONS] == ("stop",)
    (first,) = telemetry.points("gen_ai.client.operation.time_to_first_chunk")
    assert attributes[names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK] == first.sum
    assert 0 < first.sum < (span.end_time - span.start_time) / 1e9
    assert len(telemetry.points("gen_ai.client.token.usage")) == 2
    assert len(telemetry.spans) == 1


def test_a_stream_closed_early_or_dropped_ends_its_span(wire, telemetry):
    wire.streams(event("a"), event("b"), END)
    with client(wire, telemetry) as asking:
        with asking.stream_chat("Hello") as stream:
            next(stream)
        assert len(telemetry.spans) == 1
        stream = asking.stream_chat("Hello")
        next(stream)
        del stream
        gc.collect()
        assert len(telemetry.spans) == 2
    for span in telemetry.spans:
        assert span.attributes["myllm.cancelled"] is True
        assert span.status.status_code == StatusCode.UNSET


def test_a_stream_that_breaks_ends_its_span_with_the_error(wire, telemetry):
    def handler(seen, reply):
        reply.start_stream()
        reply.piece(event("a"))
        reply.hang_up()

    wire.handler = handler
    with client(wire, telemetry, capture_content=True) as asking, pytest.raises(myllm.IncompleteStreamError):
        asking.stream_chat("Hello").final()
    assert telemetry.span.attributes["error.type"] == "IncompleteStreamError"
    (partial,) = json.loads(telemetry.span.attributes[names.GEN_AI_OUTPUT_MESSAGES])
    assert partial["parts"] == [{"type": "text", "content": "a"}]


async def test_cancelled_calls_end_their_span(wire, telemetry):
    wire.handler = lambda seen, reply: time.sleep(0.5)
    async with myllm.AsyncClient(wire.url, model="m", dialect="vllm", hooks=[telemetry.hook()]) as asking:
        task = asyncio.create_task(asking.chat("Hello"))
        await asyncio.sleep(0.1)
        assert not telemetry.spans
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert telemetry.span.attributes["myllm.cancelled"] is True


async def test_async_streams(wire, telemetry):
    wire.streams(event("a"), END)
    async with myllm.AsyncClient(wire.url, model="m", dialect="vllm", hooks=[telemetry.hook()]) as asking:
        async with asking.stream_chat("Hello") as stream:
            assert (await stream.final()).text == "a"
    assert telemetry.span.attributes[names.GEN_AI_USAGE_INPUT_TOKENS] == 7


def test_text_stays_out_unless_it_is_asked_for(wire, telemetry):
    wire.answers(answer())
    with client(wire, telemetry) as asking:
        asking.chat(
            "A private question", tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]
        )
    assert "private" not in telemetry.span.to_json()
    assert "Hi." not in telemetry.span.to_json()


def test_text_has_the_form_of_the_conventions(wire, telemetry):
    call = {
        "id": "call_2",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    wire.answers(answer(reasoning="Hm.", content="Done.", tool_calls=[call]))
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    with client(wire, telemetry, capture_content=True) as asking:
        asking.chat(
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Weather?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
                {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "call_1"}]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rainy"},
            ],
            tools=tools,
        )  # fmt: skip
    attributes = telemetry.span.attributes
    requested = {"type": "tool_call", "name": "weather", "arguments": {"city": "Rome"}}
    assert json.loads(attributes[names.GEN_AI_INPUT_MESSAGES]) == [
        {"role": "system", "parts": [{"type": "text", "content": "Be brief."}]},
        {"role": "user", "parts": [{"type": "text", "content": "Weather?"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
        {"role": "assistant", "parts": [{**requested, "id": "call_1"}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "rainy"}]},
    ]  # fmt: skip
    assert json.loads(attributes[names.GEN_AI_OUTPUT_MESSAGES]) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "Hm."},
                {"type": "text", "content": "Done."},
                {**requested, "id": "call_2"},
            ],
            "finish_reason": "stop",
        }
    ]
    assert json.loads(attributes[names.GEN_AI_TOOL_DEFINITIONS]) == tools


@pytest.mark.parametrize(
    ("value", "captured"),
    [("true", True), ("SPAN_ONLY", True), ("false", False), ("NO_CONTENT", False), ("", False)],
)
def test_the_conventions_variable_asks_for_text(wire, telemetry, monkeypatch, value, captured):
    monkeypatch.setenv(CAPTURE_VARIABLE, value)
    wire.answers({"id": "c", "model": "m", "choices": [{"index": 0, "text": "b"}]})
    with client(wire, telemetry) as asking:
        asking.complete("A private question")
    assert ("A private question" in telemetry.span.to_json()) is captured


def test_text_in_events_is_not_to_be_had(monkeypatch, telemetry):
    monkeypatch.setenv(CAPTURE_VARIABLE, "EVENT_ONLY")
    with pytest.raises(myllm.InvalidParameterError, match="SPAN_ONLY"):
        telemetry.hook()
    assert telemetry.hook(capture_content=False).capture_content is False


def test_answers_from_the_cache_are_told_apart(wire, telemetry):
    wire.answers(answer())
    with client(wire, telemetry, cache=myllm.Cache(), temperature=0) as asking:
        asking.chat("Hello")
        asking.chat("Hello")
    first, second = telemetry.spans
    assert "myllm.cached" not in first.attributes
    assert (second.attributes["myllm.cached"], second.attributes["myllm.attempts"]) == (True, 0)
    assert sum(point.sum for point in telemetry.points("gen_ai.client.token.usage")) == 10  # tokens used once


def test_instrument_reaches_every_client_and_is_undone(wire, telemetry):
    wire.answers(answer())
    made_before = myllm.Client(wire.url, model="m", dialect="vllm")
    providers = {"tracer_provider": telemetry.tracers, "meter_provider": telemetry.meters}
    try:
        instrument(**providers)
        instrument(**providers)  # twice is once
        made_before.chat("Hello")
        assert len(telemetry.spans) == 1
    finally:
        uninstrument()
    made_before.chat("Hello")
    assert len(telemetry.spans) == 1
    assert hooks.everywhere == ()
    made_before.close()


def test_the_api_alone_does_nothing_and_harms_nothing(wire):
    wire.answers(answer())
    code = f"""
import sys
import time
sys.modules["opentelemetry.sdk"] = None  # not installed
import myllm
from myllm.telemetry import OpenTelemetry
with myllm.Client({wire.url!r}, model="m", dialect="vllm", hooks=[OpenTelemetry(capture_content=True)]) as client:
    print(client.chat("Hello").text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Hi.\n", "")
    assert "traceparent" not in wire.seen[0].headers


def test_without_the_api_the_extra_is_named():
    code = "import sys; sys.modules['opentelemetry'] = None\nimport myllm.telemetry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "MissingExtraError" in done.stderr
    assert "pip install 'myllm-suite[otel]'" in done.stderr.splitlines()[-1]


def test_the_log_tells_what_was_tried_and_no_secret(wire, free_port, caplog):
    wire.answers(answer())
    urls = [f"http://127.0.0.1:{free_port}", wire.url]
    with caplog.at_level(logging.DEBUG, "myllm"):
        with myllm.Client(urls, model="m", dialect="vllm", api_key="sk-secret-key") as asking:
            told = asking.chat("A private question")
    lines = [record.getMessage() for record in caplog.records if record.name == "myllm"]
    path = "/v1/chat/completions"
    assert f"POST {urls[0]}{path}, try 1 of {told.request_id}" in lines
    assert f"POST {urls[1]}{path}, try 2 of {told.request_id}" in lines
    assert any(re.match(rf"{urls[0]} is left alone for 1.0 s: No server answers", line) for line in lines)
    assert "sk-secret-key" not in caplog.text
    assert "private" not in caplog.text


class Counting(SpanProcessor):
    """Notes the spans that are started."""

    def __init__(self, started: list) -> None:
        self.on_start = lambda span, parent_context=None: started.append(span)


class Raising(hooks.Hook):
    """A hook that fails at one of its methods."""

    def __init__(self, where: str) -> None:
        setattr(self, where, self._fail)

    def _fail(self, *args) -> None:
        raise RuntimeError("a hook's own fault")


@pytest.mark.parametrize("where", ["started", "headers", "sending", "ended"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_a_hook_that_raises_leaves_no_span_of_another_open(wire, telemetry, where, first, stream):
    wire.streams(event("a"), END) if stream else wire.answers(answer())
    started = []
    telemetry.tracers.add_span_processor(Counting(started))
    both = [Raising(where), telemetry.hook()]
    options = {"model": "m", "dialect": "vllm", "max_retries": 0}
    with myllm.Client(wire.url, hooks=both if first else both[::-1], **options) as asking:
        with pytest.raises(RuntimeError, match="own fault"):
            asking.stream_chat("x").final() if stream else asking.chat("x")
    assert len(telemetry.spans) == len(started) == (0 if first and where in ("started", "headers") else 1)


@pytest.mark.parametrize("content", [["hello"], [{"type": "text"}], [{"type": "text", "text": 5}, 7]])
def test_content_of_an_odd_form_is_shown_as_it_is(wire, telemetry, content):
    wire.answers(answer())
    with client(wire, telemetry, capture_content=True) as asking:
        assert asking.chat([{"role": "user", "content": content}]).text == "Hi."
    (message,) = json.loads(telemetry.span.attributes["gen_ai.input.messages"])
    assert message["parts"] == content
