from __future__ import annotations

import json
import random
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from myllm import Client, HTTPOptions, InvalidParameterError
from myllm.doctor import examine, sources
from myllm.endpoints import resolve_endpoints

TIMEOUT = 20


def examined(url: str, **options):
    quick = options.pop("quick", False)
    with Client(url, **{"timeout": TIMEOUT, **options}) as client:
        report = examine(client, quick=quick)
    assert all(finding.advice for finding in report.problems), "a problem without advice"
    return report, {finding.check: finding for finding in report.findings}


@pytest.fixture(scope="module")
def healthy(server):
    return examined(server.url, temperature=1.5, n=3)  # defaults that would spoil the probes


def test_a_real_server_is_healthy(healthy):
    report, found = healthy
    assert report.healthy, report.problems
    assert report.reachable
    assert json.loads(json.dumps(report.to_dict()))["healthy"] is True
    assert found["kind"].data["dialect"] == "vllm"
    assert found["context"].data == {"max_model_len": 8192}
    assert found["models"].data == {"models": ["smollm2"]}


@pytest.mark.parametrize(
    "check",
    ["chat", "completion", "streaming", "logprobs", "json_schema", "regex", "choice", "grammar", "n", "seed"],
)
def test_a_real_server_can(healthy, check):
    assert healthy[1][check].status == "ok", healthy[1][check]


def test_the_streams_chunks_came_one_by_one(healthy):
    assert "one every" in healthy[1]["streaming"].summary


def test_quick_makes_no_model_work(wire):
    wire.handler = vllm()
    report, found = examined(wire.url, quick=True)
    assert report.healthy
    assert {seen.method for seen in wire.seen} == {"GET"}
    assert found["kind"].summary == "vLLM 0.12.0, spoken to as 'vllm'"


# --- a server that accepts everything and does nothing -----------------------------------------------------


def vllm(generate=None):
    """Return the handler of a vLLM whose chat endpoint is `generate(body, reply)`; it has no other."""

    def handler(seen, reply):
        gets = {
            "/health": {},
            "/v1/models": {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 4096}]},
            "/version": {"version": "0.12.0"},
        }
        if seen.path in gets:
            reply.json(gets[seen.path])
        elif seen.path == "/v1/chat/completions" and generate is not None:
            generate(seen.body, reply)
        else:
            reply.json({"detail": "Not Found"}, 404)

    return handler


def ignoring(body, reply):
    """Answer the same sort of thing whatever is asked for; streams come in one piece."""
    if "stream" in body:
        reply.start_stream()
        events = [{"index": 0, "delta": {"content": f"w{i} "}, "finish_reason": None} for i in range(8)]
        events.append({"index": 0, "delta": {}, "finish_reason": "stop"})
        reply.piece("".join(f"data: {json.dumps({'choices': [e]})}\n\n" for e in events) + "data: [DONE]\n\n")
        reply.end_stream()
        return
    text = f"Hello {random.random()}" + (" <tool_call>get_time</tool_call>" if body.get("tools") else "")
    reply.json({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]})


def test_what_is_accepted_and_not_done_is_found_out(wire):
    wire.handler = vllm(ignoring)
    report, found = examined(wire.url)
    assert {f.check for f in report.problems} == {
        "logprobs",
        "json_schema",
        "regex",
        "choice",
        "grammar",
        "n",
    }
    assert {f.check for f in report.warnings} == {"streaming", "seed", "unknown field", "max_tokens", "tools"}
    assert {f.check for f in report.findings if f.status == "absent"} == {
        "completion",
        "embeddings",
        "tokenize",
    }
    assert "accepted and ignored" in found["regex"].summary
    assert "proxy_buffering" in found["streaming"].advice
    assert found["system role"].status == found["alternation"].status == "ok"


def test_what_is_refused_is_no_problem_and_its_cure_is_named(wire):
    def strict(body, reply):
        words = None
        if len(body["messages"]) > 1:
            words = "Conversation roles must alternate user/assistant/user/assistant/..."
        elif body.get("tools"):
            words = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        elif body.get("max_tokens", 0) > 4096:
            words = "This model's maximum context length is 4096 tokens. However, you requested 9 tokens"
        if words is None:
            return ignoring(body, reply)
        return reply.json({"error": {"message": words}}, 400)

    wire.handler = vllm(strict)
    _, found = examined(wire.url)
    assert 'message_policy="alternate"' in found["alternation"].advice
    assert found["tools"].status == "absent"
    assert "--enable-auto-tool-choice" in found["tools"].advice
    assert found["max_tokens"].summary == "refused, naming the limit of 4096 tokens"


def test_a_model_without_a_chat_template(wire):
    def handler(seen, reply):
        if seen.path == "/v1/completions" and "stream" not in seen.body:
            reply.json({"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]})
        else:
            vllm(lambda body, reply: reply.json({"message": "no chat template is set"}, 400))(seen, reply)

    wire.handler = handler
    _, found = examined(wire.url)
    assert found["chat"].status == "absent"
    assert "--chat-template" in found["chat"].advice
    assert found["completion"].status == "ok"
    assert "system role" not in found
    assert found["seed"].status == "ok"  # asked by prompt


def test_what_the_sdk_refuses_is_told_without_the_probes_value(wire):
    wire.handler = lambda seen, reply: (
        reply.json({"data": [{"id": "m"}]})
        if seen.path == "/v1/models"
        else reply.json({"error": {"message": "created with embedding=True"}}, 500)
        if seen.path == "/v1/embeddings"
        else vllm(ignoring)(seen, reply)
    )
    report, found = examined(wire.url, dialect="llamacpp")
    assert "embeddings" not in {finding.check for finding in report.problems}
    assert found["embeddings"].status == "absent"
    assert found["regex"].summary.startswith("`regex`: ")
    assert "[0-9]" not in found["regex"].summary
    assert "`grammar=`" in found["regex"].advice


def test_a_server_that_generates_nothing(wire):
    wire.handler = vllm()
    report, found = examined(wire.url)
    assert [f.check for f in report.problems] == ["use"]
    assert "streaming" not in found


# --- servers that can't be examined ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "check", "words"),
    [
        (lambda seen, reply: reply.json({}, 503), "http", "not ready"),
        (
            lambda seen, reply: reply.raw(b"", 308, {"Location": "https://x/"}),
            "http",
            "redirects to 'https://x/'",
        ),
        (lambda seen, reply: reply.raw(b"<html>"), "kind", "not JSON"),
        (lambda seen, reply: reply.json({}, 404), "models", "lists none"),
        (lambda seen, reply: reply.json({}, 403), "auth", "wants a key"),
        (lambda seen, reply: reply.json({}, 500), "kind", "status 500"),
    ],
)
def test_the_one_problem_is_named(wire, answer, check, words):
    wire.handler = answer
    report, found = examined(wire.url)
    assert [f.check for f in report.problems] == [check]
    assert words in found[check].summary
    assert report.reachable
    assert "chat" not in found


def test_a_refused_key_is_told_from_a_missing_one_and_never_shown(wire):
    wire.handler = lambda seen, reply: reply.json({"error": {"message": str(seen.headers)}}, 401)
    report, found = examined(wire.url, api_key="sesame-4567")
    assert found["auth"].summary.startswith("the key is refused")
    assert "sesame" not in json.dumps(report.to_dict())


def test_a_path_too_much_and_a_kind_that_was_said(wire):
    wire.handler = lambda seen, reply: reply.json({}, 404)
    _, found = examined(f"{wire.url}/llm/v1", dialect="ollama", quick=True)
    assert found["models"].advice.endswith(f"try {wire.url}.")
    assert found["kind"].summary == "it does not say; spoken to as 'ollama'"
    assert found["kind"].advice is None


def test_a_model_that_is_not_served(wire):
    wire.handler = vllm()
    _, found = examined(wire.url, model="n", quick=True)
    assert found["models"].status == "problem"
    assert "'m'" in found["models"].advice


def test_unreachable(free_port, black_hole, wire):
    report, found = examined(f"127.0.0.1:{free_port}")
    assert not report.reachable
    assert "refuses connections" in found["tcp"].summary
    report, found = examined(f"127.0.0.1:{black_hole}", timeout=0.3)
    assert not report.reachable
    assert "within 0.3 s" in found["tcp"].summary
    report, found = examined("no-such-host.invalid")
    assert not report.reachable
    assert "dns" in {f.check for f in report.problems}
    wire.handler = lambda seen, reply: reply.hang_up()
    report, found = examined(wire.url)
    assert not report.reachable
    assert found["http"].section == "Connection"


def test_several_servers_are_examined_one_at_a_time():
    with pytest.raises(InvalidParameterError, match="one at a time"):
        examine(Client(["localhost:1", "localhost:2"]))


# --- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, file = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", file, "-days", "3", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    return file, key


@pytest.fixture
def tls_port(certificate):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *args):
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            """Failed handshakes are what these tests are about."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_certificates(tls_port, certificate):
    _, found = examined(f"https://localhost:{tls_port}")
    assert found["tls"].status == "problem"
    assert "self-signed" in found["tls"].summary
    assert "SSL_CERT_FILE" in found["tls"].advice
    trusting = HTTPOptions(verify=str(certificate[0]))
    _, found = examined(f"https://localhost:{tls_port}", http=trusting)
    assert found["tls"].status == "warning"
    assert "good for 2 days" in found["tls"].summary
    assert found["http"].status == "ok"
    _, found = examined(f"https://127.0.0.1:{tls_port}", http=trusting)
    assert "another host name" in found["tls"].advice


def test_https_to_a_server_without_it(wire):
    _, found = examined(f"https://127.0.0.1:{wire.port}")
    assert "`http://`" in found["tls"].advice


# --- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [None, "given:1"])
@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OPENAI_BASE_URL": "o:1", "OPENAI_API_KEY": "ok"},
        {"MYLLM_BASE_URL": "m:1", "OPENAI_BASE_URL": "o:1", "OPENAI_API_KEY": "ok"},
        {"MYLLM_BASE_URL": "m:1", "MYLLM_API_KEY": "mk", "OPENAI_API_KEY": "ok"},
        {"MYLLM_API_KEY": "mk", "OPENAI_BASE_URL": "o:1", "OPENAI_API_KEY": "ok"},
        {"MYLLM_BASE_URL": "", "OPENAI_BASE_URL": "o:1"},
    ],
)
def test_sources_are_those_of_the_client(url, key, environ):
    (endpoint,) = resolve_endpoints(url, key, environ)
    origin = sources(url, key, environ)
    values = {"argument": url, "default": "localhost:8000", **environ}
    assert endpoint.url == f"http://{values[origin.url]}"
    assert endpoint.api_key == {"argument": key, "none": None, **environ}[origin.key]


def test_a_proxy_is_shown_without_its_password(monkeypatch, free_port):
    monkeypatch.setenv("HTTP_PROXY", f"http://user:hush-hush@127.0.0.1:{free_port}")
    report, found = examined("http://llm.example.org", api_key="k")
    assert found["proxy"].summary == f"requests go through http://127.0.0.1:{free_port}"
    assert "hush" not in json.dumps(report.to_dict())
    assert "proxy" in found["tcp"].summary
    assert "NO_PROXY" in found["tcp"].advice
    assert found["api_key"].status == "warning"  # a key over plain http
    _, found = examined(f"localhost:{free_port}")
    assert found["proxy"].data == {"used": None, "environment": ["http"]}
    assert "never reached through one" in found["proxy"].summary


def test_what_is_installed():
    _, found = examined("no-such-host.invalid")
    assert "cli" in found["extras"].data["installed"]
    assert set(found["versions"].data) == {"myllm", "python", "httpx", "httpcore"}
