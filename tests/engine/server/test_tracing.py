"""Spans of requests, as an OpenTelemetry collector gets them."""

from __future__ import annotations

import gzip
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from myllm_engine.errors import GenerationError
from myllm_engine.request import Request, RequestOutput
from myllm_engine.server import run
from myllm_engine.server.http_settings import HttpSettings
from myllm_engine.server.listen import StartError
from myllm_engine.server.settings import ServerSettings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans = []
        self.resource = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            self.resource = attributes(resource.resource)
            for scope in resource.scope_spans:
                self.spans += scope.spans


def attributes(holder) -> dict:
    """Return attributes as Python's own values."""

    def plain(value):
        kind = value.WhichOneof("value")
        inner = getattr(value, kind)
        return [plain(item) for item in inner.values] if kind == "array_value" else inner

    return {item.key: plain(item.value) for item in holder.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_each_request_becomes_a_span(serve, collector):
    settings = ServerSettings(http=HttpSettings(otlp_traces_endpoint=collector.url))
    with serve(settings) as live:  # at its end everything is sent
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        body = {
            "prompt": "The secret word is",
            "max_tokens": 3,
            "n": 2,
            "temperature": 0.5,
            "top_p": 0.9,
            "ignore_eos": True,
        }
        usage = httpx.post(f"{live.url}/v1/completions", json=body, headers=headers, timeout=60).json()[
            "usage"
        ]
        httpx.post(
            f"{live.url}/generate", json={"inputs": "Once", "parameters": {"max_new_tokens": 2}}, timeout=60
        )
    first, second = sorted(collector.spans, key=lambda span: span.start_time_unix_nano)
    assert first.name == second.name == "llm_request"
    assert first.kind == first.SPAN_KIND_SERVER
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert second.trace_id.hex() != TRACE
    assert not second.parent_span_id
    assert collector.resource["service.name"] == "myllm"

    said = attributes(first)
    assert said["gen_ai.request.model"] == "smollm2"
    assert said["gen_ai.usage.prompt_tokens"] == said["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert said["gen_ai.usage.completion_tokens"] == said["gen_ai.usage.output_tokens"] == 6
    assert (said["gen_ai.request.n"], said["gen_ai.request.max_tokens"]) == (2, 3)
    assert (said["gen_ai.request.temperature"], said["gen_ai.request.top_p"]) == (0.5, 0.9)
    assert said["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert "secret" not in str(first)
    seconds = (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert said["gen_ai.latency.e2e"] == pytest.approx(seconds, abs=0.05)
    prefill, decode = (said[f"gen_ai.latency.time_in_model_{phase}"] for phase in ("prefill", "decode"))
    assert said["gen_ai.latency.time_in_model_inference"] == pytest.approx(prefill + decode)
    assert 0 <= said["gen_ai.latency.time_in_queue"] < said["gen_ai.latency.time_to_first_token"] < seconds


@pytest.mark.parametrize("lost", [False, True])
def test_a_failure_is_an_error_of_the_span(engine, collector, lost):
    from myllm_engine.server.tracing import Tracing, send_to

    tracing = Tracing(send_to(collector.url, "1.0"), engine)
    request = Request(prompt_token_ids=[1], request_id="r")
    tracing.accepted(request)
    if lost:
        tracing.lost(["r", "unknown"])
    else:
        failed = RequestOutput("r", [1], [], finished=True, error=GenerationError("The words of the user"))
        tracing.delivered([failed, RequestOutput("unknown", [1], [], finished=True)])
    tracing.close()
    [span] = collector.spans
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert attributes(span).get("error.type") == (None if lost else "GenerationError")
    assert "words of the user" not in str(span)


def test_nobody_loads_it_unasked():
    # The API alone is loaded by transformers, too.
    code = "import sys, myllm_engine.server.app; print([name for name in sys.modules if 'opentelemetry.sdk' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(run, "find_spec", lambda name: None if "otlp" in name else find(name))
    run.check_installed()
    with pytest.raises(StartError, match=re.escape("pip install 'myllm-suite[engine,otel]'")):
        run.check_installed(tracing=True)
